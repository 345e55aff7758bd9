"""Bytes saved for the backward pass, relative to those of the frozen model; no timing involved."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from benchmarks.measure import saved_bytes
from rosa import RosaConfig

LAYERS = 4
# As the proportions of real models, an eighth or so of their width.
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": LAYERS, "vocab_size": 512,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZES),
    "llama-mha": lambda: LlamaConfig(**{**SIZES, "num_key_value_heads": 8}),
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
}
RANK = 64  # a quarter of the width, as 128 is of 512


def plain(name: str, dtype: torch.dtype) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]()).to(dtype)


def kept(model: Any, shape: tuple[int, int], *, embedded: bool = False) -> int:
    """Bytes; `embedded`: the gradient is wanted at the embedding's output."""
    tokens = torch.randint(3, 500, shape, generator=torch.Generator().manual_seed(0))
    inputs: dict[str, Any] = {"input_ids": tokens}
    if embedded:
        inputs = {"inputs_embeds": model.get_input_embeddings()(tokens).detach().requires_grad_()}
    resident = [*model.parameters(), *model.buffers()]
    return saved_bytes(
        lambda: model(**inputs, labels=tokens, use_cache=False).loss, resident=resident
    )


QUICK = {
    ("llama", (4, 32), "post"),
    ("llama-mha", (1, 128), "post"),
    ("qwen2", (1, 128), "pre"),
    ("qwen3", (4, 32), "pre"),
}


@pytest.mark.parametrize(
    ("name", "shape", "stage"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(CONFIGS, [(4, 32), (1, 128)], ["post", "pre"])
    ],
)
def test_rosa_keeps_little_more_than_the_frozen_model(
    name: str, shape: tuple[int, int], stage: str
) -> None:
    floor = kept(plain(name, torch.float32).requires_grad_(False), shape, embedded=True)
    lora = get_peft_model(plain(name, torch.float32), LoraConfig(r=16, target_modules="all-linear"))
    rosa = get_peft_model(plain(name, torch.float32), RosaConfig(r=RANK, rope_stage=stage))
    of_rosa = kept(rosa, shape)
    assert of_rosa <= 1.20 * floor
    assert of_rosa < kept(lora, shape)

    for layer in rosa.get_base_model().model.layers[::2]:  # as layer selection does
        layer.requires_grad_(False)
    assert kept(rosa, shape) <= 1.10 * floor
