"""PEFT's contract: several adapters, their `requires_grad`, and what RoSA does not support.

What PEFT's own common tests ask of a method, and what users of several adapters rely on.
"""

from __future__ import annotations

import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from safetensors.torch import load_file
from torch import nn

from rosa import DlsConfig, DynamicLayerSelection
from rosa.errors import RosaError
from rosa.roae import RosaLayer
from tests.support.adapters import randomize, trainable
from tests.support.peft_models import (
    TOKENS,
    WEIGHTS,
    base,
    config,
    each_kind,
    gradients,
    layer_of,
    logits,
    of,
    wrapped,
)
from tests.support.versions import needs, saves_one_adapter_per_file, transformers_loads_norms

NAMES = ("default", "default_2", "a", "aa", "other_default", "efaul")


@saves_one_adapter_per_file
@each_kind
@pytest.mark.filterwarnings("ignore:.*[Aa]dapter name.*prefix")  # "a" is in PEFT's "rosa_"
def test_names_that_contain_one_another(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    for number, name in enumerate(NAMES[1:], start=2):
        model.add_adapter(name, config(r=number, r_low=0.5 if number % 2 else 1.0))
    expected = {}
    for seed, name in enumerate(NAMES):
        model.set_adapter(name)
        assert model.active_adapters == [name]
        assert trainable(model) == of(name, model)
        randomize(model, seed=seed)
        expected[name] = logits(model)
    model.save_pretrained(tmp_path)
    again = base(kind)
    for name in NAMES:
        folder = tmp_path if name == "default" else tmp_path / name
        state = load_file(folder / WEIGHTS)
        assert state.keys() == get_peft_model_state_dict(model, adapter_name=name).keys()
        assert len(state) == len(of(name, model))
        assert not any(f".{other}." in key for key in state for other in NAMES)
        if isinstance(again, PeftModel):
            missing = again.load_adapter(folder, name).missing_keys
            assert not any(f".{name}." in key for key in missing)
        else:
            again = PeftModel.from_pretrained(again, folder)
    for name in reversed(NAMES):
        again.set_adapter(name)
        assert torch.equal(logits(again), expected[name])
        if name != "default":
            again.delete_adapter(name)
            assert not of(name, again)


@each_kind
def test_an_adapter_that_is_added_or_deleted_leaves_the_others_alone(kind: str) -> None:
    model = wrapped(kind)
    expected, own = logits(model), trainable(model)
    model.add_adapter("second", config(r=2, train_norms=False, rope_stage="pre"))
    assert torch.equal(logits(model), expected)
    assert trainable(model) == own
    assert model.active_adapters == ["default"]
    model.delete_adapter("second")
    assert torch.equal(logits(model), expected)
    assert trainable(model) == own


@each_kind
def test_deleting_adapters_leaves_nothing_of_them(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="Setting active adapter to default"):
        model.delete_adapter("second")
    assert list(model.peft_config) == model.active_adapters == ["default"]
    assert trainable(model) == of("default", model) != set()
    _assert_without("second", model, active=["default"])
    model.delete_adapter("default")
    assert model.active_adapters == []
    _assert_without("default", model, active=[])
    assert torch.equal(logits(model.base_model), logits(base(kind)))


def _assert_without(name: str, model: nn.Module, active: list[str]) -> None:
    assert not of(name, model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            for attribute in module.adapter_layer_names + module.other_param_names:
                assert name not in attrgetter(attribute)(module)
            assert module.active_adapters == active
        if isinstance(module, AuxiliaryTrainingWrapper):
            assert name not in module._adapters
            assert module.active_adapters == active


@each_kind
def test_an_adapter_can_be_added_when_the_last_was_deleted(kind: str) -> None:
    model = wrapped(kind)
    model.delete_adapter("default")
    model.add_adapter("new", config())
    assert trainable(model) == set()
    model.set_adapter("new")
    assert trainable(model) == of("new", model) != set()
    randomize(model)
    assert torch.equal(logits(model), logits(wrapped(kind)))


@each_kind
@pytest.mark.parametrize("first", [0, 1])
def test_adapters_of_different_layers_are_deleted(kind: str, first: int) -> None:
    model = wrapped(kind, layers_to_transform=[first])
    expected = logits(model)
    model.add_adapter("second", config(layers_to_transform=[1 - first]))
    model.set_adapter("second")
    assert {layer_of(name) for name in trainable(model)} == {1 - first}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("second")
    assert model.active_adapters == ["default"]
    assert torch.equal(logits(model), expected)
    assert {layer_of(name) for name in trainable(model)} == {first}


@needs("peft", "0.21")
def test_unknown_and_taken_names() -> None:
    model = wrapped("llama")
    for act in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="missing"):
            act("missing")
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("default", config())


@each_kind
def test_a_bad_second_adapter_leaves_the_model_as_it_was(kind: str) -> None:
    model = wrapped(kind)
    expected, own = logits(model), trainable(model)
    for bad in (config(r_low=0.01), config(layers_to_transform=[9]), config(modules_to_save=["x"])):
        with pytest.raises(RosaError):
            model.add_adapter("bad", bad)
        assert list(model.peft_config) == list(model.base_model.peft_config) == ["default"]
        assert not of("bad", model)
        assert trainable(model) == own
        assert torch.equal(logits(model), expected)
    model.add_adapter("bad", config())


@each_kind
def test_the_status_of_the_model(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    status = model.get_model_status()
    assert status.enabled is True
    assert status.active_adapters == ["default"]
    assert status.available_adapters == ["default", "second"]
    assert status.requires_grad == {"default": True, "second": False}
    assert status.merged_adapters == []
    assert status.trainable_params == model.get_nb_trainable_parameters()[0]
    with model.disable_adapter():
        assert model.get_model_status().enabled is False
    assert model.get_model_status() == status


@needs("peft", "0.21")
@each_kind
def test_requires_grad_follows_set_adapter_and_inference_mode(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind, inference_mode=True)
    assert trainable(model) == set()
    model.set_adapter("default")
    assert trainable(model) == of("default", model)
    model.set_adapter("default", inference_mode=True)
    assert trainable(model) == set()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert trainable(loaded) == set()
    loaded.load_adapter(tmp_path, "second")
    assert trainable(loaded) == set()
    loaded.load_adapter(tmp_path, "third", is_trainable=True)
    assert trainable(loaded) == of("third", loaded)
    loaded.set_requires_grad("third", requires_grad=False)
    assert trainable(loaded) == set()
    plain = base(kind)
    plain.load_adapter(str(tmp_path))
    assert trainable(plain) == set()
    assert trainable(PeftModel.from_pretrained(base(kind), tmp_path, is_trainable=True)) != set()


@each_kind
def test_disabling_and_enabling_again_leaves_trainability_as_it_was(kind: str) -> None:
    model = wrapped(kind)
    model.add_adapter("second", config(r=2))
    first, second = of("default", model), of("second", model)
    half = {name for name in first if layer_of(name) == 0}
    for wanted in (first, set(), second, half, first | second):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        with model.disable_adapter():
            assert trainable(model) == set()
            with model.disable_adapter():
                assert torch.equal(logits(model), logits(base(kind)))
        assert trainable(model) == wanted
        model.base_model.disable_adapter_layers()
        model.base_model.enable_adapter_layers()
        model.base_model.enable_adapter_layers()
        assert trainable(model) == wanted
    model.base_model.disable_adapter_layers()
    model.set_adapter("second")
    model.base_model.enable_adapter_layers()
    assert trainable(model) == second


def test_the_reference_passes_of_preference_training_do_not_thaw_layers() -> None:
    """They run under `disable_adapter`; layers that DLS froze must not collect gradients after."""
    model = wrapped("llama")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0, p_exploit=1.0))
    for _ in range(2):
        with model.disable_adapter():
            logits(model)
        gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    assert dls.selected is not None
    assert not dls.scoring
    with model.disable_adapter():
        logits(model)
    assert {layer_of(name) for name in gradients(model)} == set(dls.selected)


@transformers_loads_norms
@each_kind
@torch.no_grad()
def test_transformers_switches_norms_with_the_rest(kind: str, tmp_path: Path) -> None:
    expected = {}
    for seed, name in enumerate(("one", "two")):
        model = get_peft_model(base(kind), config(r=seed + 2), adapter_name=name).eval()
        randomize(model, seed=seed)
        model.save_pretrained(tmp_path)
        expected[name] = logits(model)
    plain = base(kind)
    for name in expected:
        plain.load_adapter(str(tmp_path / name), adapter_name=name)
    for name in ("one", "two", "one"):
        plain.set_adapter(name)
        assert plain.active_adapters() == [name]
        assert torch.equal(logits(plain), expected[name])
    plain.disable_adapters()
    assert torch.equal(logits(plain), logits(base(kind)))
    plain.enable_adapters()
    assert torch.equal(logits(plain), expected["one"])
    state = plain.get_adapter_state_dict("two")
    assert len(state) == len(load_file(tmp_path / "two" / WEIGHTS))


@needs("peft", "0.19")
@each_kind
def test_merging_raises_and_unloading_works(kind: str) -> None:
    model = wrapped(kind)
    expected = logits(model)
    layer = next(module for module in model.modules() if isinstance(module, RosaLayer))
    for merge in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(RosaError, match=r"cannot be merged.*unload\(\)"):
            merge()
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    plain = model.unload()
    assert plain.state_dict().keys() == base(kind).state_dict().keys()
    assert not hasattr(plain, "peft_config")
    assert not any(
        isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in plain.modules()
    )
    assert torch.equal(logits(plain), logits(base(kind)))


def test_unloading_keeps_modules_to_save_as_trained_as_peft_does() -> None:
    model = wrapped("llama", modules_to_save=["lm_head"])
    trained = next(p for n, p in model.named_parameters() if "lm_head.modules_to_save" in n)
    plain = model.unload()
    assert torch.equal(plain.lm_head.weight, trained)
    assert not any(isinstance(module, ModulesToSaveWrapper) for module in plain.modules())


NO_SUM = "cannot be combined into a weighted adapter"
NO_MIXTURE = "one adapter for a whole batch"


@pytest.mark.parametrize(
    ("combine", "sentence"),
    [
        (lambda m: m.add_weighted_adapter(["default", "second"], [0.5, 0.5], "both"), NO_SUM),
        (lambda m: m.base_model.add_weighted_adapter(["default"], [1.0], "one"), NO_SUM),
        (
            lambda m: m.base_model.set_adapter(["default", "second"]),
            "one adapter at a time, but default, second",
        ),
        (lambda m: m(input_ids=TOKENS, adapter_names=["default", "second"]), NO_MIXTURE),
        (lambda m: m.generate(TOKENS, adapter_names=["default", "__base__"]), NO_MIXTURE),
    ],
)
def test_adapters_are_not_combined(combine: Any, sentence: str) -> None:
    model = wrapped("llama")
    model.add_adapter("second", config())
    expected = logits(model)
    with pytest.raises(RosaError, match=sentence) as caught:
        combine(model)
    assert "\n" not in str(caught.value)
    assert list(model.peft_config) == ["default", "second"]
    assert torch.equal(logits(model), expected)


@transformers_loads_norms
def test_what_peft_itself_keeps_to_some_methods(tmp_path: Path) -> None:
    """Its own sentences; the model stays as it was."""
    model = wrapped("llama")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but ROSA was passed"):
        hotswap_adapter(model, str(tmp_path), "default", torch_device="cpu")
    with pytest.raises(ValueError, match="No adapter layers found"):
        prepare_model_for_compiled_hotswap(model, target_rank=8)
    plain = base("llama")
    plain.load_adapter(str(tmp_path))
    with pytest.raises(ValueError, match="only supported for LoRA"):
        plain.load_adapter(str(tmp_path), adapter_name="default", hotswap=True)
    with pytest.raises(ValueError, match="'ROSA' is not compatible with the `PeftMixedModel`"):
        get_peft_model(base("llama"), config(), mixed=True)
    if hasattr(peft, "convert_to_lora"):  # from 0.19 on
        assert not model.supports_lora_conversion()
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            peft.convert_to_lora(model, rank=2)
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("lora", LoraConfig(target_modules=["up_proj"]))
    assert torch.equal(logits(model), expected)
