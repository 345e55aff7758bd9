"""The adapted model in half precision against float32, next to what the base alone loses there."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from rosa import RosaConfig
from rosa.roae.norms import NormWrapper
from tests.support.adapters import SMALL, randomize
from tests.support.nightly import over
from tests.support.op_variants import each_variant_nightly
from tests.support.reference import relative_error
from tests.support.tiny_models import KINDS, OTHERS, random_tokens, tiny_model

TOKENS = random_tokens(length=48)
BF16, FP16 = torch.bfloat16, torch.float16
# By name: dtype of the base, of autocast, and whether the adapter stays in float32.
PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype | None, bool]] = {
    "bf16": (BF16, None, True),
    "bf16, adapter too": (BF16, None, False),
    "bf16 autocast": (torch.float32, BF16, True),
    "bf16 under autocast": (BF16, BF16, True),
    "fp16": (FP16, None, True),
    "fp16, adapter too": (FP16, None, False),
}
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
FLOAT32 = (torch.float32, None, True)


def build(name: str, adapter: bool, precision: Any, rope_stage: Any = "post") -> nn.Module:
    """A tiny model, with signals around 1, the paper's α and norms 10 % from the base's."""
    base, _, in_float32 = precision
    model = tiny_model(name, dtype=base)
    if adapter:
        config = RosaConfig(**{**SMALL, "alpha": 0.1}, rope_stage=rope_stage)
        model = get_peft_model(model, config, autocast_adapter_dtype=in_float32)
        randomize(model)
        with torch.no_grad():
            for copy, original in norms(model):
                copy.copy_(original + (copy - original) / 3)
    return model


def norms(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """(trained copy, original) of each norm's weight."""
    return [
        (module.modules_to_save["default"].weight, module.original_module.weight)
        for module in model.modules()
        if isinstance(module, NormWrapper)
    ]


def computing(precision: Any) -> Any:
    return nullcontext() if precision[1] is None else torch.autocast("cpu", precision[1])


@cache
def logits(
    name: str, adapter: bool, precision: Any, rope_stage: str = "post", ops_variant: str = ""
) -> Tensor:
    """Of a variant that runs now: its name is there for the cache."""
    model = build(name, adapter, precision, rope_stage)
    with torch.no_grad(), computing(precision):
        return model(input_ids=TOKENS).logits.double()


def gradient(name: str, precision: Any) -> Tensor:
    """Of all adapter weights, as one vector."""
    model = build(name, True, precision)
    with computing(precision):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    found = [p.grad.double().flatten() for p in model.parameters() if p.requires_grad]
    return torch.cat(found)


@each_variant_nightly
@each_precision
@pytest.mark.parametrize(
    ("name", "rope_stage"),
    [
        *((name, "post") for name in KINDS),
        ("llama-gqa", "pre"),
        *(pytest.param(name, "post", marks=pytest.mark.slow) for name in OTHERS),
        pytest.param("gemma3", "pre", marks=pytest.mark.slow),
    ],
)
def test_the_adapter_adds_little_to_what_the_base_loses(
    name: str, rope_stage: str, precision: str, ops_variant: str
) -> None:
    less, how = PRECISIONS[precision], (rope_stage, ops_variant)
    lost = [
        relative_error(logits(name, False, less), logits(name, False, FLOAT32)),
        relative_error(logits(name, True, less, *how), logits(name, True, FLOAT32, *how)),
    ]
    assert 0 < lost[1] < 2 * lost[0]


@each_variant_nightly
@each_precision
@over("name", ["llama-gqa", "gemma3"], nightly=["llama-yarn", "qwen3-mha"])
def test_gradients_point_where_those_of_float32_do(name: str, precision: str) -> None:
    less, exact = gradient(name, PRECISIONS[precision]), gradient(name, FLOAT32)
    assert torch.nn.functional.cosine_similarity(less, exact, dim=0) > 0.98
    assert 0.9 < less.norm() / exact.norm() < 1.1


@pytest.mark.parametrize("in_float32", [True, False])
def test_small_steps_on_norms_are_kept_in_float32_and_lost_in_bfloat16(in_float32: bool) -> None:
    """Why the copies are float32: AdamW's steps of 1e-4 on weights near 1."""
    model = get_peft_model(
        tiny_model("llama-gqa", dtype=BF16),
        RosaConfig(**SMALL),
        autocast_adapter_dtype=in_float32,
    )
    copies = norms(model)
    optimizer = torch.optim.AdamW([copy for copy, _ in copies], lr=1e-4, weight_decay=0.0)
    for _ in range(5):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = torch.cat([copy != original for copy, original in copies]).float().mean()
    assert moved > 0.99 if in_float32 else moved < 0.05
