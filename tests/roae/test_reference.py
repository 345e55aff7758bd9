"""RoAE against an independent float64 reference, in every supported architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.adapters import SMALL, adapted, adapter_state
from tests.support.nightly import over
from tests.support.op_variants import each_variant
from tests.support.reference import Reference, recorded_rotation, relative_error
from tests.support.tiny_models import KINDS, OTHERS, TEXT_VARIANTS, random_tokens, tiny_model

STAGES = ("post", "pre")


def reference_for(name: str, model: Any, stage: str, dtype: torch.dtype) -> Reference:
    plain = tiny_model(name, dtype=dtype)
    return Reference(plain, adapter_state(model), SMALL["alpha"], stage)


@each_variant
@pytest.mark.parametrize("stage", STAGES)
@over("name", [*KINDS, "llama-yarn"], nightly=sorted(set(OTHERS) - {"llama-yarn"}))
@torch.no_grad()
def test_rotated_queries_and_keys_and_logits_in_float64(name: str, stage: str) -> None:
    model = adapted(name, dtype=torch.float64, rope_stage=stage)
    reference = reference_for(name, model, stage, torch.float64)
    inputs: list[torch.Tensor] = []
    rotations: list[Any] = []
    base = model.get_base_model()
    for site in reference.attention:
        base.get_submodule(site).register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
        )
    tokens = random_tokens()
    first = next(iter(reference.attention.values()))
    with recorded_rotation(first, rotations):
        logits = model(input_ids=tokens).logits

    # The same input into each of the reference's attention modules.
    with reference.active():
        for attention, hidden, (turns, _) in zip(
            reference.attention.values(), inputs, rotations, strict=True
        ):
            attention(hidden_states=hidden, position_embeddings=turns, attention_mask=None)
    assert len(reference.rotated) == len(rotations) == 2
    for (_, actual), expected in zip(rotations, reference.rotated, strict=True):
        assert relative_error(actual[0], expected[0]) <= 1e-12
        assert relative_error(actual[1], expected[1]) <= 1e-12

    assert relative_error(logits, reference(input_ids=tokens)) <= 1e-7
    with model.disable_adapter():
        assert relative_error(model(input_ids=tokens).logits, logits) > 0.05  # it does something


@each_variant
@pytest.mark.parametrize("stage", STAGES)
@over("name", ["llama-gqa", "gemma3"], nightly=sorted({*TEXT_VARIANTS} - {"llama-gqa", "gemma3"}))
@torch.no_grad()
def test_logits_in_float32(name: str, stage: str) -> None:
    model = adapted(name, rope_stage=stage)
    reference = reference_for(name, model, stage, torch.float32)
    tokens = random_tokens()
    assert relative_error(model(input_ids=tokens).logits, reference(input_ids=tokens)) <= 1e-5


@torch.no_grad()
def test_the_reference_distinguishes_the_stages() -> None:
    """Else the two tests above could not fail for a library that mixes them up."""
    model = adapted("llama-yarn", dtype=torch.float64, rope_stage="post")
    reference = reference_for("llama-yarn", model, "pre", torch.float64)
    tokens = random_tokens()
    assert relative_error(model(input_ids=tokens).logits, reference(input_ids=tokens)) > 1e-3


@each_variant
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["llama-gqa", "llama-yarn", "qwen3-mha", "gemma2"])
def test_gradients_equal_the_references(name: str, stage: str) -> None:
    """Through the modulation and both factors of both projections, in float64."""
    model = adapted(name, dtype=torch.float64, rope_stage=stage)
    state = {key: value.clone().requires_grad_() for key, value in adapter_state(model).items()}
    reference = Reference(tiny_model(name, dtype=torch.float64), state, SMALL["alpha"], stage)
    tokens = random_tokens()
    model(input_ids=tokens, labels=tokens).loss.backward()
    with reference.active():
        reference.model(input_ids=tokens, labels=tokens).loss.backward()
    actual = {
        key.replace(".default", ""): parameter.grad
        for key, parameter in model.named_parameters()
        if "rosa_" in key
    }
    expected = {key: value.grad for key, value in state.items() if "rosa_" in key}
    assert actual.keys() == expected.keys()
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) <= 1e-6, key
