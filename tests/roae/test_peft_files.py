"""PEFT's contract: state dicts, files and copies."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils import save_and_load
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.adapters import trainable
from tests.support.peft_models import (
    SMALL,
    WEIGHTS,
    base,
    config,
    each_kind,
    each_kind_tied_or_not,
    layer_of,
    logits,
    of,
    wrapped,
)
from tests.support.versions import reports_unexpected_keys


@each_kind
def test_state_dicts(kind: str) -> None:
    model, other = wrapped(kind), get_peft_model(base(kind), config()).eval()
    state = get_peft_model_state_dict(model)
    assert not any(".default." in key for key in state)
    assert len(state) == len(of("default", model))
    result = set_peft_model_state_dict(other, dict(state))  # before 0.19 PEFT empties it
    assert not result.unexpected_keys
    assert torch.equal(logits(other), logits(model))
    # Without a PeftModel around it the model's own names hold, for norms as for modules_to_save.
    injected = inject_adapter_in_model(config(), base(kind))
    state = {key.removeprefix("base_model.model."): tensor for key, tensor in state.items()}
    assert not set_peft_model_state_dict(injected, state).unexpected_keys
    assert torch.equal(logits(injected), logits(model))


@each_kind
def test_injection_where_a_state_dict_says(kind: str) -> None:
    whole = get_peft_model_state_dict(inject_adapter_in_model(config(), base(kind)))
    state = {key: tensor for key, tensor in whole.items() if layer_of(f".{key}") == 1}
    with pytest.warns(RuntimeWarning, match=r"additional target modules: \[.*0\.(self_)?attn'\]"):
        model = inject_adapter_in_model(config(), base(kind), state_dict=state)
    assert {layer_of(f".{name}") for name in trainable(model)} == {1}
    assert not set_peft_model_state_dict(model, state).unexpected_keys


@pytest.mark.skipif(
    not hasattr(save_and_load, "get_base_model_state_dict"), reason="PEFT has it from 0.20 on"
)
@each_kind
def test_the_state_of_the_base_model(kind: str) -> None:
    expected = {key: tensor.clone() for key, tensor in base(kind).state_dict().items()}
    model = wrapped(kind)
    state = save_and_load.get_base_model_state_dict(model)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in of("default", model):
                parameter.mul_(2)
    result = save_and_load.set_base_model_state_dict(model, expected)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(logits(model), logits(wrapped(kind)))


@each_kind
def test_saving_and_loading(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md", "adapter_config.json", WEIGHTS,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base(kind), tmp_path, device_map={"": "cpu"})
    assert torch.equal(logits(loaded), logits(model))
    own = config()
    loaded = PeftModel.from_pretrained(base(kind), tmp_path, config=own)
    assert loaded.peft_config["default"] is own
    assert own.inference_mode


@reports_unexpected_keys
@each_kind
def test_keys_that_are_missing_or_unexpected_are_reported(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    first = next(key for key in whole if "rosa_A" in key)
    norm = next(key for key in whole if "rosa_" not in key)

    def loaded_from(state: dict[str, Tensor]) -> PeftModel:
        save_file(state, tmp_path / WEIGHTS)
        return PeftModel.from_pretrained(base(kind), tmp_path)

    with pytest.warns(UserWarning, match=r"missing adapter keys.*rosa_A"):
        loaded_from({key: tensor for key, tensor in whole.items() if key != first})
    with pytest.raises(KeyError, match=norm):
        loaded_from({key: tensor for key, tensor in whole.items() if key != norm})
    for extra in (first.replace("rosa_A", "rosa_C"), first.replace(".0.", ".7.")):
        with pytest.warns(UserWarning, match=rf"unexpected keys.*{extra}"):
            again = loaded_from({**whole, extra: torch.zeros(2)})
        assert torch.equal(logits(again), logits(model))


@reports_unexpected_keys
@each_kind
def test_norms_of_a_file_do_not_overwrite_those_of_the_base(kind: str, tmp_path: Path) -> None:
    """A file with norms and a configuration without them, as an edited one would be."""
    wrapped(kind).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"train_norms": False}))
    with pytest.warns(UserWarning, match=r"unexpected keys .*(input_layernorm|ln_1)"):
        model = PeftModel.from_pretrained(base(kind), tmp_path)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base(kind)))


@each_kind_tied_or_not
def test_embeddings_that_were_saved_along_are_loaded_without_a_word(
    kind: str, tmp_path: Path
) -> None:
    model = wrapped(kind, modules_to_save=["lm_head"])
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.5)
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
        loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_a_configuration_of_the_future(tmp_path: Path) -> None:
    wrapped("llama").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"some_future_key": 1}))
    with pytest.warns(UserWarning, match="some_future_key"):
        loaded = PeftModel.from_pretrained(base("llama"), tmp_path)
    assert torch.equal(logits(loaded), logits(wrapped("llama")))
    assert loaded.peft_config["default"].r == SMALL["r"]


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_equal_and_independent(kind: str, copied: Any) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    expected, copy_of_model = logits(model), copied(model)
    assert torch.equal(logits(copy_of_model), expected)
    assert trainable(copy_of_model) == trainable(model)
    copy_of_model.set_adapter("second")
    assert torch.equal(logits(copy_of_model), logits(base(kind)))
    copy_of_model.base_model.disable_adapter_layers()
    copy_of_model.delete_adapter("default")
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(model.unload()), logits(base(kind)))
