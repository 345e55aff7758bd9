"""`prepare_for_inference` changes how fast a model answers, not what it answers or saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured

from rosa.errors import RosaError
from rosa.roae.layer import RosaLayer
from tests.support.adapters import adapted, adapter_state
from tests.support.op_variants import each_variant_nightly
from tests.support.tiny_models import random_tokens

TOKENS = random_tokens()


def layers(model: torch.nn.Module) -> list[RosaLayer]:
    return [module for module in model.modules() if isinstance(module, RosaLayer)]


@each_variant_nightly
@pytest.mark.parametrize("name", ["llama-gqa", "qwen2", "llama-mha"])
def test_logits_and_what_is_saved_stay(name: str) -> None:
    model = adapted(name, dtype=torch.float64, r=12)
    saved = adapter_state(model)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        model.prepare_for_inference()
        assert all(bool(layer._folded) == (name != "llama-mha") for layer in layers(model))
        torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)
    after = adapter_state(model)
    assert saved.keys() == after.keys()
    assert all(torch.equal(saved[key], after[key]) for key in saved)


@pytest.mark.parametrize(("r", "folded"), [(2, []), (12, ["gqa_A"]), (64, ["A", "gqa_A"])])
def test_only_where_it_is_cheaper(r: int, folded: list[str]) -> None:
    """W_GQA: 32·16 products instead of r·(32 + 16); W_proj: 64·32 instead of r·(64 + 32)."""
    model = adapted("llama-gqa", dtype=torch.float64, r=r)
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
        model.prepare_for_inference()
        torch.testing.assert_close(model(input_ids=TOKENS).logits, expected)
    for layer in layers(model):
        assert [stages[0] for _, stages in layer._folded] == [f"rosa_{name}" for name in folded]


@torch.no_grad()
def test_another_adapter_of_the_same_name_is_not_taken_for_the_one_folded() -> None:
    model = adapted("llama-gqa", dtype=torch.float64, r=12)
    model.prepare_for_inference()
    config = model.peft_config["default"]
    model.add_adapter("other", config)
    model.set_adapter("other")
    model.delete_adapter("default")
    model.add_adapter("default", config)
    model.set_adapter("default")
    for name, parameter in model.named_parameters():
        if "rosa_" in name and ".default" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    actual = model(input_ids=TOKENS).logits
    for layer in layers(model):
        layer._folded.clear()
    assert torch.equal(actual, model(input_ids=TOKENS).logits)


def test_training_undoes_it_and_gets_every_gradient() -> None:
    model = adapted("llama-gqa", r=12)
    model.prepare_for_inference()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()  # in eval mode too
    factors = [p for key, p in model.named_parameters() if "gqa" in key]
    assert all(parameter.grad.count_nonzero() for parameter in factors)
    model.train()
    assert not any(layer._folded for layer in layers(model))
    with pytest.raises(RosaError, match="call eval"):
        model.prepare_for_inference()


@torch.no_grad()
def test_a_weight_that_changes_is_heeded() -> None:
    model = adapted("llama-gqa", dtype=torch.float64, r=12)
    model.prepare_for_inference()
    before = model(input_ids=TOKENS).logits
    for layer in layers(model):
        layer.rosa_gqa_B["default"].weight.mul_(3)
    changed = model(input_ids=TOKENS).logits
    assert not torch.allclose(changed, before)
    for layer in layers(model):
        layer._folded.clear()
    assert torch.equal(model(input_ids=TOKENS).logits, changed)
    model.prepare_for_inference()
    model.float()
    assert model(input_ids=TOKENS).logits.dtype == torch.float32


def _hook(layer: RosaLayer) -> None:
    layer.rosa_gqa_B["default"].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))


def _prune(layer: RosaLayer) -> None:
    l1_unstructured(layer.rosa_gqa_B["default"], "weight", 0.3)


def _parametrize(layer: RosaLayer) -> None:
    weight_norm(layer.rosa_gqa_B["default"])


@torch.no_grad()
@pytest.mark.parametrize("change", [_hook, _prune, _parametrize])
@pytest.mark.parametrize("first", ["prepared", "changed"])
def test_a_factor_that_does_more_than_multiply_is_not_folded(change: Any, first: str) -> None:
    model = adapted("llama-gqa", dtype=torch.float64, r=12)
    if first == "prepared":
        model.prepare_for_inference()
    for layer in layers(model):
        change(layer)
    if first == "changed":
        model.prepare_for_inference()
    actual = model(input_ids=TOKENS).logits
    for layer in layers(model):
        layer._folded.clear()
    assert torch.equal(actual, model(input_ids=TOKENS).logits)
