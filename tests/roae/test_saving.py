"""Saving and loading: PEFT's ways, Transformers' way, and the sentences for files that don't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.integrations.peft import PeftAdapterMixin
from transformers.models.llama import LlamaConfig, LlamaForCausalLM

from rosa import RosaConfig
from rosa.attention.transformers_compat import watch_load_adapter
from rosa.errors import RosaError
from rosa.roae import RosaLayer, check_adapter, load_adapter_checked
from tests.support.adapters import SMALL, adapted, adapter_state, logits
from tests.support.nightly import over
from tests.support.op_variants import each_variant_nightly
from tests.support.tiny_models import COMMON, GQA, KINDS, OTHERS, tiny_model
from tests.support.versions import needs, transformers_loads_norms

WEIGHTS = "adapter_model.safetensors"


@each_variant_nightly
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@over("name", KINDS, nightly=OTHERS)
def test_round_trip_through_peft(name: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = adapted(name)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        tiny_model(name), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())  # for inference
    assert not any(p.is_meta for p in loaded.parameters())


@needs("peft", "0.19")  # which Transformers' own load_adapter asks for
def test_load_adapter_of_an_older_transformers_raises_where_it_loses_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PeftAdapterMixin, "load_adapter", PeftAdapterMixin.load_adapter)
    monkeypatch.setattr("transformers.__version__", "5.17.0")
    watch_load_adapter()
    for name, config in {"norms": {}, "none": {"train_norms": False}}.items():
        get_peft_model(tiny_model("llama-gqa"), RosaConfig(**config)).save_pretrained(
            tmp_path / name
        )
    plain = tiny_model("llama-gqa")
    with pytest.raises(RosaError, match=r"5\.17\.0 loses trained norms.*PeftModel\.from_pre"):
        plain.load_adapter(str(tmp_path / "norms"))
    assert not any(isinstance(module, RosaLayer) for module in plain.modules())
    again = PeftModel.from_pretrained(tiny_model("llama-gqa"), tmp_path / "norms")
    assert torch.equal(logits(again), logits(tiny_model("llama-gqa")))
    tiny_model("llama-gqa").load_adapter(str(tmp_path / "none"))


@transformers_loads_norms
@each_variant_nightly
@over("name", KINDS, nightly=OTHERS)
def test_round_trip_through_transformers(name: str, tmp_path: Path) -> None:
    model = adapted(name)
    model.save_pretrained(tmp_path)
    plain = tiny_model(name)
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain), logits(model))
    plain.disable_adapters()
    assert torch.equal(logits(plain), logits(tiny_model(name)))
    plain.enable_adapters()
    assert torch.equal(logits(plain), logits(model))
    plain.delete_adapter("default")
    assert torch.equal(logits(plain), logits(tiny_model(name)))


def test_round_trip_through_the_auto_class(tmp_path: Path) -> None:
    base = tiny_model("qwen2")
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, RosaConfig(**SMALL, task_type="CAUSAL_LM", init_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model.eval()))


def test_loading_next_to_another_adapter_and_resuming_training(tmp_path: Path) -> None:
    model = adapted("gemma3")
    model.save_pretrained(tmp_path)
    other = get_peft_model(tiny_model("gemma3"), RosaConfig(r=2, train_norms=False)).eval()
    other.load_adapter(tmp_path, "second", is_trainable=True)
    assert torch.equal(logits(other), logits(tiny_model("gemma3")))
    other.set_adapter("second")
    assert torch.equal(logits(other), logits(model))
    trainable = [name for name, p in other.named_parameters() if p.requires_grad]
    assert len(trainable) == len(adapter_state(model))
    assert all(".second." in name for name in trainable)


def test_round_trip_on_a_half_precision_base_keeps_float32_weights(tmp_path: Path) -> None:
    model = adapted("gemma2", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    loaded = PeftModel.from_pretrained(tiny_model("gemma2", dtype=torch.bfloat16), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_the_file_holds_the_adapter_only_under_the_documented_names(tmp_path: Path) -> None:
    adapted("llama-gqa").save_pretrained(tmp_path)  # r=6; 4 heads of 8 low dimensions, 2 for keys
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
    layer = {
        "self_attn.rosa_A.weight": (6, 48),
        "self_attn.rosa_B.weight": (32, 6),
        "self_attn.rosa_gqa_A.weight": (6, 32),
        "self_attn.rosa_gqa_B.weight": (16, 6),
        "input_layernorm.weight": (48,),
        "post_attention_layernorm.weight": (48,),
    }
    prefix = "base_model.model.model.layers"
    assert shapes == {f"{prefix}.{i}.{k}": s for i in range(2) for k, s in layer.items()}


def test_multi_head_attention_has_no_key_projection(tmp_path: Path) -> None:
    adapted("llama-mha").save_pretrained(tmp_path)
    assert not any("gqa" in key for key in load_file(tmp_path / WEIGHTS))


# Files that do not fit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapted("llama-gqa").save_pretrained(tmp_path)
    return tmp_path


def other_llama(**changes: Any) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**{**COMMON, **GQA, **changes})).eval()


def test_an_adapter_that_fits_is_loaded(folder: Path) -> None:
    loaded = load_adapter_checked(tiny_model("llama-gqa"), folder)
    assert torch.equal(logits(loaded), logits(adapted("llama-gqa")))
    assert any(p.requires_grad for p in load_adapter_checked(
        tiny_model("llama-gqa"), folder, is_trainable=True
    ).parameters())  # fmt: skip


def test_the_check_leaves_the_model_and_the_random_state_alone(folder: Path) -> None:
    model = tiny_model("llama-gqa")
    expected, state = logits(model), torch.random.get_rng_state()
    check_adapter(model, folder)
    assert torch.equal(logits(model), expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 64}, r"layers\.0\.input_layernorm\.weight is \(48,\).*needs \(64,\)"),
        ({"num_attention_heads": 8}, r"rosa_B\.weight is \(32, 6\).*needs \(64, 6\)"),
        ({"num_hidden_layers": 1}, r"layers\.1\.input_layernorm\.weight is .*needs nothing"),
        ({"num_hidden_layers": 3}, r"layers\.2\.input_layernorm\.weight is not in the file"),
    ],
)
def test_another_base_model(folder: Path, changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(RosaError, match=sentence) as caught:
        load_adapter_checked(other_llama(**changes), folder)
    assert "\n" not in str(caught.value)


def test_a_base_model_without_rope_or_too_small_heads(folder: Path) -> None:
    with pytest.raises(RosaError, match="head_dim=2"):
        load_adapter_checked(other_llama(head_dim=2), folder)


def test_tensors_of_another_shape(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    key = next(key for key in state if "rosa_A" in key)
    state[key] = state[key][:3].clone()
    save_file(state, folder / WEIGHTS)
    with pytest.raises(RosaError, match=r"rosa_A\.weight is \(3, 48\).*needs \(6, 48\)"):
        load_adapter_checked(tiny_model("llama-gqa"), folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 3000])
def test_a_cut_off_file(folder: Path, kept: int) -> None:
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(RosaError, match=rf"{WEIGHTS} is damaged") as caught:
        load_adapter_checked(tiny_model("llama-gqa"), folder)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files(folder: Path, tmp_path: Path) -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(RosaError, match=r"there is no adapter_config\.json"):
        load_adapter_checked(model, tmp_path / "nowhere")
    for text in (
        "{",
        "[]",
        '{"r": 4}',
        '{"peft_type": "NONSENSE"}',
        '{"peft_type": "ROSA", "r": 0}',
    ):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(RosaError, match=r"adapter_config\.json"):
            load_adapter_checked(model, folder)
    adapted("llama-gqa").save_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(RosaError, match=r"there is no adapter_model\.safetensors"):
        load_adapter_checked(model, folder)


def test_modules_of_the_base_that_were_saved_along_are_checked_too(tmp_path: Path) -> None:
    model = adapted("llama-gqa", modules_to_save=["lm_head"])
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in key for key in load_file(tmp_path / WEIGHTS))
    loaded = load_adapter_checked(tiny_model("llama-gqa"), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    with pytest.raises(RosaError, match=r"resize_token_embeddings\(128\)"):
        load_adapter_checked(other_llama(vocab_size=64), tmp_path)


def test_the_check_serves_other_methods(tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("llama-gqa"), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    load_adapter_checked(tiny_model("llama-gqa"), tmp_path)
    with pytest.raises(RosaError, match=r"lora_A\.weight is \(8, 48\).*needs \(8, 64\)"):
        load_adapter_checked(other_llama(hidden_size=64), tmp_path)
