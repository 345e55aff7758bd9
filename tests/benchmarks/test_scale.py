"""The formulas of saved bytes, term by term: widths, lengths, ranks, kernels, precisions."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Gemma2Config, MixtralConfig, Qwen2Config, Qwen3Config

from benchmarks.contenders import llama
from benchmarks.scale_check import estimated, measured
from rosa.budget.activation_memory import AdapterSpec, DecoderShape, MicroBatch
from rosa.errors import RosaError

FLOOR = AdapterSpec()
ROSA = AdapterSpec("rosa", {"r": 16})
LORA = AdapterSpec("lora", {"r": 4, "target_modules": "all-linear"})
SMALL: dict[str, Any] = {"num_hidden_layers": 4, "vocab_size": 300}
SIZES = {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6, **SMALL}
TOLERANCE = 0.03


def check(config: Any, adapter: AdapterSpec, batch: MicroBatch) -> None:
    said, found = estimated(config, adapter, batch), measured(config, adapter, batch)
    assert said == pytest.approx(found, rel=TOLERANCE), (said / found, adapter, batch)


@pytest.mark.parametrize("eager", [False, True], ids=["fused", "eager"])
@pytest.mark.parametrize("padded", [False, True], ids=["equal-length", "padded"])
@pytest.mark.parametrize("element", [4, 2], ids=["float32", "bf16"])
@pytest.mark.parametrize("adapter", [FLOOR, ROSA, LORA], ids=["floor", "rosa", "lora"])
def test_every_kernel_and_precision(
    adapter: AdapterSpec, element: int, padded: bool, eager: bool
) -> None:
    check(llama(256, 4, **SMALL), adapter, MicroBatch(2, 48, element, padded, eager))


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterSpec("rosa", {"r": 4, "r_low": 1.0}),
        AdapterSpec("rosa", {"r": 96, "r_low": 0.1}),
        AdapterSpec("rosa", {"r": 16, "rope_stage": "pre"}),
        AdapterSpec("rosa", {"r": 16, "projection": "full"}),
        AdapterSpec("rosa", {"r": 48, "train_norms": False}),
        AdapterSpec("lora", {"r": 64, "target_modules": ["q_proj", "k_proj", "v_proj"]}),
    ],
    ids=["full-heads", "rank", "pre", "full", "no-norms", "lora-qkv"],
)
@pytest.mark.parametrize(
    ("width", "shape"),
    [
        (128, (3, 16)),
        (256, (1, 200)),
        pytest.param(384, (2, 40), marks=pytest.mark.slow),
    ],
)
def test_width_length_and_rank(width: int, shape: tuple[int, int], adapter: AdapterSpec) -> None:
    check(llama(width, 4, **SMALL), adapter, MicroBatch(*shape, 4, padded=False))


@pytest.mark.parametrize("adapter", [FLOOR, ROSA, LORA], ids=["floor", "rosa", "lora"])
@pytest.mark.parametrize(
    "config",
    [
        Qwen2Config(**SIZES, num_key_value_heads=2),
        Qwen3Config(**SIZES, num_key_value_heads=3, head_dim=32),
        Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16),
        llama(256, 4, **SMALL, num_key_value_heads=4),
    ],
    ids=["qwen2", "qwen3", "gemma2", "mha"],
)
def test_architectures(config: Any, adapter: AdapterSpec) -> None:
    check(config, adapter, MicroBatch(2, 40, 4))


def test_a_mixture_of_experts_raises() -> None:
    with pytest.raises(RosaError, match="dense decoders only, which 'mixtral' is not"):
        DecoderShape.of(MixtralConfig())
