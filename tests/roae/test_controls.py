"""Controls and a bound: which pairs, a constant signal, |S| < b; against the float64 reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import nn

from rosa import RosaConfig
from rosa.ops.reference import bounded_signal
from rosa.roae import RosaLayer
from rosa.roae.pairs import adapted_pairs
from rosa.rope import layout_of
from tests.support.adapters import SMALL, TOKENS, adapted, adapter_state, gradients, logits
from tests.support.op_variants import each_variant
from tests.support.reference import Reference, relative_error
from tests.support.tiny_models import tiny_model

ARCHITECTURES = ("llama-gqa", "llama-mha", "qwen3-mha", "gemma3")
CONTROLS: list[dict[str, Any]] = [
    {"pairs": "high"},
    {"pairs": "random", "pairs_seed": 3},
    {"pairs": "all"},
    {"projection": "constant"},
    {"bound": 0.3},
    {"bound": 0.3, "pairs": "random", "projection": "constant"},
]


def layers_of(model: nn.Module) -> dict[str, RosaLayer]:
    base = model.get_base_model()
    return {key: m for key, m in base.named_modules() if isinstance(m, RosaLayer)}


def pairs_of(model: nn.Module) -> dict[str, Sequence[int]]:
    config = model.peft_config["default"]
    return {
        key: adapted_pairs(layer.layout, config, int(layer.layer_idx))
        for key, layer in layers_of(model).items()
    }


def reference_of(name: str, model: PeftModel, stage: str, **rest: Any) -> Reference:
    plain = tiny_model(name, dtype=torch.float64)
    bound = model.peft_config["default"].bound
    return Reference(
        plain,
        rest.get("state", adapter_state(model)),
        SMALL["alpha"],
        stage,
        pairs_of(model),
        bound,
    )


@each_variant
@pytest.mark.parametrize("stage", ["post", "pre"])
@pytest.mark.parametrize("control", CONTROLS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_in_float64(name: str, control: dict[str, Any], stage: str) -> None:
    model = adapted(name, dtype=torch.float64, rope_stage=stage, **control)
    expected = reference_of(name, model, stage)(input_ids=TOKENS)
    assert relative_error(logits(model), expected) <= 1e-7
    with model.disable_adapter():
        assert relative_error(logits(model), expected) > 0.01  # it does something
    assert relative_error(model(input_ids=TOKENS).logits, expected) <= 1e-7  # for a backward pass


@each_variant
@pytest.mark.parametrize("control", [CONTROLS[1], CONTROLS[-1]], ids=str)
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_gradients_equal_the_references(name: str, control: dict[str, Any]) -> None:
    model = adapted(name, dtype=torch.float64, **control)
    state = {key: value.clone().requires_grad_() for key, value in adapter_state(model).items()}
    reference = reference_of(name, model, "post", state=state)
    actual = {
        key.replace(".default", ""): gradient
        for key, gradient in gradients(model).items()
        if "rosa_" in key
    }
    with reference.active():
        reference.model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    expected = {key: value.grad for key, value in state.items() if "rosa_" in key}
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) <= 1e-6, key


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_saved_and_loaded_again_bit_for_bit(control: dict[str, Any], tmp_path: Path) -> None:
    model = adapted("gemma3", **control)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(tiny_model("gemma3"), str(tmp_path))
    assert torch.equal(logits(again.eval()), logits(model))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["llama-gqa", "qwen3-mha", "gemma3"]),
    pairs=st.sampled_from(["low", "high", "random", "all"]),
    seed=st.integers(0, 2**31),
    projection=st.sampled_from(["low_rank", "full", "constant"]),
    bound=st.none() | st.floats(1e-3, 10),
    norms=st.sampled_from(["absolute", "relative"]),
    stage=st.sampled_from(["post", "pre"]),
)
def test_identity_at_the_start(name: str, norms: str, seed: int, stage: str, **config: Any) -> None:
    model = tiny_model(name)
    before = logits(model)
    keys = {"pairs_seed": seed, "rope_stage": stage, "norm_parametrization": norms, **config}
    model = get_peft_model(model, RosaConfig(**SMALL, **keys)).eval()
    assert torch.equal(logits(model), before)
    learning = gradients(model)
    assert any("rosa_" in key and grad.any() for key, grad in learning.items())


def test_which_pairs() -> None:
    layout = layout_of(tiny_model("llama-gqa").model.layers[0].self_attn)
    assert layout is not None

    def chosen(layer: int = 0, **config: Any) -> Sequence[int]:
        return adapted_pairs(layout, RosaConfig(**{"r_low": 0.4, **config}), layer)

    assert list(chosen()) == [5, 6, 7]
    assert list(chosen(pairs="high")) == [0, 1, 2]
    assert list(chosen(pairs="all")) == list(range(8))
    drawn = {layer: chosen(layer, pairs="random") for layer in range(40)}
    assert drawn[7] == chosen(7, pairs="random")
    assert drawn[7] != chosen(7, pairs="random", pairs_seed=1)
    assert all(len(set(pairs)) == 3 and list(pairs) == sorted(pairs) for pairs in drawn.values())
    assert {pair for pairs in drawn.values() for pair in pairs} == set(range(8))
    assert len({tuple(pairs) for pairs in drawn.values()}) > 10


def test_equal_budget_but_for_all_pairs() -> None:
    def count(**config: Any) -> int:
        model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(**{**SMALL, **config}))
        return model.get_nb_trainable_parameters()[0]

    assert count() == count(pairs="high") == count(pairs="random") == count(bound=1.0)
    assert count(pairs="all") == count(r_low=1.0) > count()


@given(signal=st.floats(-1e4, 1e4), bound=st.floats(1e-2, 1e2))
def test_the_bound_is_one_and_is_the_signal_to_first_order(signal: float, bound: float) -> None:
    s = torch.tensor(signal, dtype=torch.float64)
    out = bounded_signal(s, bound)
    assert out.abs() <= bound
    assert (out - s).abs() <= s.abs() ** 3 / (3 * bound**2) + 1e-12  # |tanh x - x| ≤ |x|³/3
    assert bounded_signal(s, None) is s
