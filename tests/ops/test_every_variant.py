"""Tests that run over every variant of the modulation: that they do, and layer selection's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.attention import heads
from rosa.ops import autograd
from rosa.ops import modulation as plain
from tests.dls import test_methods as test_dls_methods
from tests.dls import test_selection as selection
from tests.roae import test_composition
from tests.support.adapters import adapted
from tests.support.architectures import BY_NAME
from tests.support.dls_models import adamw, rosa, same, snapshot, tiny_llama, train_step
from tests.support.dls_reference import algorithm_1
from tests.support.op_variants import DEFAULT, each_variant, is_nightly
from tests.support.tiny_models import random_tokens

TOKENS = random_tokens(1, 3)


@each_variant
@pytest.mark.parametrize("stage", ["post", "pre"])
def test_the_variant_that_is_asked_for_is_what_runs(
    ops_variant: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the tests that run over all of them could run one of them three times."""
    ran: set[str] = set()

    def spy(variant: str, place: ModuleType, name: str) -> None:
        function: Callable[..., Any] = getattr(place, name)

        def noted(*args: Any, **kwargs: Any) -> Any:
            ran.add(variant)
            return function(*args, **kwargs)

        monkeypatch.setattr(place, name, noted)

    spy("reference", heads, f"modulate_{stage}_rotation")
    for name in ("modulate_pairs_", "modulate_pairs_backward"):
        spy("autograd", plain, name)
        if ops_variant == "triton":
            spy("triton", autograd._operations("triton"), name)
    model = adapted("llama-gqa", rope_stage=stage)
    with torch.no_grad():
        model(input_ids=TOKENS)
    assert ran == {ops_variant}
    ran.clear()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert ran == {ops_variant}


def test_other_models_wait_for_the_nightly_run() -> None:
    assert is_nightly({"ops_variant": "triton", "name": "gemma3", "stage": "post"})
    assert is_nightly({"ops_variant": "reference", "case": BY_NAME["cohere"]})
    assert not is_nightly({"ops_variant": DEFAULT, "case": BY_NAME["cohere"]})
    assert not is_nightly({"ops_variant": "triton", "case": BY_NAME["phi3"]})
    assert not is_nightly({"ops_variant": "triton"})
    assert not is_nightly({"name": "gemma3"})


@pytest.mark.slow
@each_variant
@pytest.mark.parametrize(
    "check",
    [
        selection.test_trajectory_is_that_of_algorithm_1,
        selection.test_scores_are_equation_5,
        selection.test_weight_gradients_of_frozen_layers_are_not_computed_between_scoring_steps,
    ],
)
def test_layer_selection(check: Callable[[Callable[[], Any]], None]) -> None:
    check(rosa)


@pytest.mark.slow
@each_variant
def test_frozen_layers_and_their_state_do_not_change_by_a_bit() -> None:
    test_dls_methods.test_a_method_under_dls("RoSA", "llama")


@each_variant
def test_layer_selection_is_algorithm_1() -> None:
    """Bit for bit, choosing at every step: a layer that is not chosen does not move."""

    def two_layers() -> PeftModel:
        torch.manual_seed(0)
        config = RosaConfig(r=4, r_low=0.5, alpha=1.0)
        return get_peft_model(tiny_llama(torch.float32, layers=2), config)

    config, steps = DlsConfig(interval=1, warmup=0, p_exploit=0.5, seed=1), 4
    reference, model = two_layers(), two_layers()
    expected = algorithm_1(reference, config, steps)
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, config)
    for t in range(1, steps + 1):
        train_step(model, optimizer, t)
    chosen = [record["selected"] for record in dls.history]
    assert chosen == [record["selected"] for record in expected]
    assert {layer for layers in chosen for layer in layers} == {0, 1}
    assert same(snapshot(model), snapshot(reference))


@pytest.mark.slow
@each_variant
def test_layer_selection_with_lora_on_the_same_projections() -> None:
    test_composition.test_layer_selection_freezes_both_methods_of_a_layer("attention")
