"""A base model with offloaded layers is an error that names one, not NaN logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.errors import RosaError
from rosa.roae import load_adapter_checked
from tests.support.tiny_folder import tiny_llama

IN_PLACE = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.layers.0")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(layers=2).save_pretrained(folder)
    return folder


@pytest.fixture
def offloaded(base: Path, tmp_path: Path) -> Any:
    """The model with its layer 1 on disk."""
    devices = {**dict.fromkeys(IN_PLACE, "cpu"), "model.layers.1": "disk"}
    folder = str(tmp_path / "offload")
    return AutoModelForCausalLM.from_pretrained(base, device_map=devices, offload_folder=folder)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, RosaConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(folder)
    return folder


FIRST = r"modules of the model are offloaded .* model\.layers\.1\.self_attn\.q_proj"


@pytest.mark.parametrize("train_norms", [True, False])
def test_a_new_adapter(offloaded: Any, train_norms: bool) -> None:
    before = offloaded(torch.arange(8)[None]).logits
    with pytest.raises(RosaError, match=FIRST):
        get_peft_model(offloaded, RosaConfig(r=4, train_norms=train_norms))
    assert torch.equal(offloaded(torch.arange(8)[None]).logits, before)


def test_an_adapter_that_is_loaded(offloaded: Any, adapter: Path) -> None:
    with pytest.raises(RosaError, match=FIRST):
        load_adapter_checked(offloaded, adapter)
    with pytest.raises(KeyError, match=r"layers\.1"):  # PEFT's own, before it asks RoSA
        PeftModel.from_pretrained(offloaded, adapter)


def test_layers_offloaded_to_the_cpu() -> None:
    model = tiny_llama()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(RosaError, match=r"the first is model\.embed_tokens"):
        get_peft_model(model, RosaConfig(r=4))


@pytest.mark.parametrize("layers", [None, [0]])
def test_layer_selection(offloaded: Any, layers: list[int] | None) -> None:
    """LoRA of PEFT attaches; its weights in layer 1, or the norms to be scored, are not there."""
    config = LoraConfig(target_modules=["q_proj"], layers_to_transform=layers)
    model = get_peft_model(offloaded, config)
    optimizer = torch.optim.SGD(p for p in model.parameters() if p.requires_grad)
    with pytest.raises(RosaError, match=r"of layer 1 is offloaded"):
        DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))


def test_a_device_map_without_offloading(base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, device_map={"": "cpu"})
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    adapted = get_peft_model(model, RosaConfig(r=4))
    assert adapted(torch.arange(8)[None]).logits.isfinite().all()
