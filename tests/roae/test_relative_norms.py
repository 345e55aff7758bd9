"""Norms trained relative to their scale, against the norms that they stand for."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from rosa import RosaConfig
from rosa.errors import RosaError
from rosa.ops import RelativeNorm, scale_offset, use
from rosa.roae.norms import NormWrapper
from tests.support import peft_models
from tests.support.adapters import SMALL, TOKENS, adapted, adapter_state, gradients, logits
from tests.support.op_variants import each_variant
from tests.support.reference import Reference, relative_error
from tests.support.tiny_models import SquaredNorm, tiny_model

ARCHITECTURES = ("llama-gqa", "qwen3-mha", "gemma3")
RELATIVE: dict[str, Any] = {"norm_parametrization": "relative"}


def norms(model: nn.Module) -> dict[str, NormWrapper]:
    return {key: m for key, m in model.named_modules() if isinstance(m, NormWrapper)}


def scale_of(name: str, norm: nn.Module) -> Tensor:
    return norm.weight + (1 if name.startswith("gemma") else 0)


@each_variant
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_the_model_is_the_one_whose_norms_are_saved(name: str) -> None:
    """w₀ ⊙ (1 + δ), by hand, is what is saved; the reference computes with it in float64."""
    model = adapted(name, dtype=torch.float64, **RELATIVE)
    state = adapter_state(model)
    for key, wrapper in norms(model).items():
        start = scale_of(name, wrapper.original_module)
        delta = wrapper.modules_to_save["default"].get_parameter("weight")
        assert delta.abs().max() > 0.1
        expected = start * (1 + delta) - start + wrapper.original_module.weight
        assert relative_error(state[f"{key}.weight"], expected) < 1e-14
    reference = Reference(tiny_model(name, dtype=torch.float64), state, SMALL["alpha"], "post")
    assert relative_error(logits(model), reference(input_ids=TOKENS)) <= 1e-7


@each_variant
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gradient_is_that_of_the_scale_times_the_frozen_scale(name: str) -> None:
    model = adapted(name, dtype=torch.float64, **RELATIVE)
    state = {key: value.clone().requires_grad_() for key, value in adapter_state(model).items()}
    absolute = adapted(name, dtype=torch.float64)
    absolute.load_state_dict(
        {key.replace(".weight", ".default.weight"): value for key, value in state.items()},
        strict=False,
    )
    for key, wrapper in norms(absolute).items():
        wrapper.modules_to_save["default"].weight.data.copy_(state[f"{key}.weight"])
    expected, actual = gradients(absolute), gradients(model)
    assert expected.keys() == actual.keys()
    for key, gradient in actual.items():
        by_scale = expected[key]
        if "modules_to_save" in key:
            frozen = model.get_submodule(key.partition(".modules_to_save")[0]).original_module
            by_scale = by_scale * scale_of(name, frozen)
        assert relative_error(gradient, by_scale) <= 1e-6, key


@pytest.mark.parametrize("kind", ["llama", "gptj", "gemma3"])
@pytest.mark.parametrize("parametrizations", [("relative", "absolute"), ("absolute", "relative")])
def test_a_saved_adapter_loads_into_either(
    kind: str, parametrizations: tuple[str, str], tmp_path: Path
) -> None:
    saved, loaded = parametrizations
    model = peft_models.wrapped(kind, norm_parametrization=saved)
    model.save_pretrained(str(tmp_path))
    config = RosaConfig.from_pretrained(str(tmp_path))
    assert config.norm_parametrization == saved
    config.norm_parametrization = loaded
    other = PeftModel.from_pretrained(peft_models.base(kind), str(tmp_path), config=config)
    assert relative_error(peft_models.logits(other), peft_models.logits(model)) < 1e-5
    kinds = {
        type(norm.modules_to_save["default"]) is RelativeNorm for norm in norms(other).values()
    }
    assert kinds == {loaded == "relative"}


@pytest.mark.parametrize("kind", ["llama", "gptj", "gemma3"])
def test_saved_and_loaded_again(kind: str, tmp_path: Path) -> None:
    model = peft_models.wrapped(kind, **RELATIVE)
    model.save_pretrained(str(tmp_path))
    for low in (False, True):
        again = PeftModel.from_pretrained(
            peft_models.base(kind), str(tmp_path), low_cpu_mem_usage=low, is_trainable=True
        )
        for key, wrapper in norms(model).items():
            here = wrapper.modules_to_save["default"].weight
            there = norms(again)[key].modules_to_save["default"].weight
            assert here.dtype == there.dtype == torch.float32
            assert torch.allclose(here, there, atol=1e-6)
        assert relative_error(peft_models.logits(again), peft_models.logits(model)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gptj", "gemma3"])
def test_adapters_are_switched_disabled_and_unloaded(kind: str, dtype: torch.dtype) -> None:
    model = peft_models.base(kind, dtype)
    before = peft_models.logits(model)
    model = get_peft_model(model, peft_models.config(**RELATIVE))
    assert torch.equal(peft_models.logits(model), before)
    deltas = [n.modules_to_save["default"].weight for n in norms(model).values()]
    assert {delta.dtype for delta in deltas} == {torch.float32}
    model.add_adapter("absolute", peft_models.config())
    peft_models.randomize(model)
    first = peft_models.logits(model)
    model.set_adapter("absolute")
    assert torch.equal(peft_models.logits(model), before)
    model.set_adapter("default")
    assert torch.equal(peft_models.logits(model), first)
    assert torch.equal(peft_models.logits(copy.deepcopy(model)), first)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(peft_models.logits(torch.load(file, weights_only=False)), first)
    with model.disable_adapter():
        assert torch.equal(peft_models.logits(model), before)
    model.delete_adapter("absolute")
    assert torch.equal(peft_models.logits(model), first)
    assert torch.equal(peft_models.logits(model.unload()), before)


def test_a_step_is_a_share_of_any_scale_and_the_base_stays() -> None:
    """What the parametrization is for: AdamW's first step is the rate, here of the scale itself."""
    model = tiny_model("gemma3")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("layernorm.weight"):
                parameter.copy_(torch.linspace(0.5, 300, parameter.numel()))
    frozen = {key: value.clone() for key, value in model.named_parameters()}
    model = get_peft_model(model, RosaConfig(**SMALL, **RELATIVE))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
    loss.backward()
    optimizer.step()
    state = adapter_state(model)
    for key, wrapper in norms(model).items():
        start = 1 + wrapper.original_module.weight
        change = (1 + state[f"{key}.weight"]) / start - 1
        moved = wrapper.modules_to_save["default"].weight.grad.abs() > 1e-5
        assert moved.any()
        assert torch.allclose(change[moved].abs(), torch.tensor(0.01), rtol=2e-2)
    for key, parameter in model.get_base_model().named_parameters():
        name = key.replace(".base_layer", "").replace(".original_module", "")
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_memory_saving_backward_equals_plain_autograd(name: str) -> None:
    model = adapted(name, **RELATIVE).train()
    actual = gradients(model)
    with use("reference"):
        expected = gradients(model)
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) < 1e-4, key


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gptj", "gemma3"])
def test_compiled_without_a_graph_break(kind: str) -> None:
    model = peft_models.wrapped(kind, **RELATIVE)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    tokens = peft_models.TOKENS
    assert relative_error(compiled(input_ids=tokens).logits, model(input_ids=tokens).logits) < 1e-5


def test_norms_of_every_form() -> None:
    assert scale_offset(nn.LayerNorm(4)) == scale_offset(nn.RMSNorm(4)) == 0
    assert scale_offset(nn.LayerNorm(4, bias=False)) == 0
    assert scale_offset(tiny_model("gemma3").model.layers[0].input_layernorm) == 1
    assert scale_offset(SquaredNorm(4)) is None
    with pytest.raises(RosaError, match="use 'absolute'"):
        RelativeNorm(SquaredNorm(4))


def test_an_unknown_norm_is_named_before_the_model_is_changed() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[1].input_layernorm = SquaredNorm(48)
    with pytest.raises(RosaError, match=r"layers\.1\.input_layernorm.*SquaredNorm"):
        get_peft_model(model, RosaConfig(**SMALL, **RELATIVE))
    assert not norms(model)


def test_a_change_of_a_zero_scale_is_not_lost_in_silence() -> None:
    norm = nn.RMSNorm(2)
    norm.weight.data[0] = 0
    relative = RelativeNorm(norm)
    relative.load_state_dict({"weight": torch.tensor([0.0, 3.0])})
    assert torch.equal(relative.weight, torch.tensor([0.0, 2.0]))
    with pytest.raises(RosaError, match="changes a scale that is 0"):
        relative.load_state_dict({"weight": torch.tensor([0.5, 3.0])})


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    exponent=st.floats(-3, 3),
    gemma=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_identity_at_the_start_for_any_scale(
    seed: int, exponent: float, gemma: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = tiny_model("gemma3" if gemma else "llama-gqa").model.layers[0].input_layernorm
    size = norm.weight.numel()
    norm.weight.data = (10**exponent * torch.randn(size, generator=generator)).to(dtype)
    x = torch.randn(3, size, generator=generator).to(dtype)
    wrapper = NormWrapper(norm, "default", relative=True)
    wrapper.cast("default", upcast=True)
    assert torch.equal(wrapper(x), NormWrapper(copy.deepcopy(norm), "default")(x))
    saved = wrapper.modules_to_save["default"].state_dict()["weight"]
    assert torch.equal(saved, norm.weight.float())
