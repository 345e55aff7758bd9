"""Tiny random models of every supported architecture, built from configs: no downloads.

`tiny_model("llama-gqa")` returns a float32 model in eval mode with seeded weights; `VARIANTS` lists
the names. Norm weights are perturbed, so that a mistake in a norm cannot hide behind ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

VOCABULARY = 128
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
MHA: dict[str, Any] = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}


def _gemma3_text(**changes: Any) -> Gemma3TextConfig:
    """Local and global layers with different rotary bases, as in the real model."""
    return Gemma3TextConfig(
        **{**COMMON, **GQA, **SLIDING, "query_pre_attn_scalar": 16, **changes},
    )


def _gemma3_multimodal() -> Gemma3Config:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    return Gemma3Config(
        text_config=_gemma3_text().to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
    )


def _configs() -> dict[str, Any]:
    return {
        "llama-gqa": LlamaConfig(**COMMON, **GQA),
        "llama-mha": LlamaConfig(**COMMON, **MHA),
        "llama-yarn": LlamaConfig(**COMMON, **GQA, rope_parameters=dict(YARN)),
        "llama-llama3": LlamaConfig(**COMMON, **GQA, rope_parameters=dict(LLAMA3)),
        "mistral": MistralConfig(**COMMON, **GQA, sliding_window=8),
        "qwen2": Qwen2Config(**COMMON, num_attention_heads=3, num_key_value_heads=1),
        "qwen3": Qwen3Config(**COMMON, **GQA),
        "qwen3-mha": Qwen3Config(**COMMON, **MHA),
        "gemma2": Gemma2Config(**COMMON, **GQA, **SLIDING, query_pre_attn_scalar=16),
        "gemma3": _gemma3_text(),
        "gemma3-multimodal": _gemma3_multimodal(),
    }


VARIANTS = tuple(_configs())
# One of each kind: grouped queries, as many keys as queries, norms of queries and keys, sliding
# windows with norms after each block, a vision tower.
KINDS = ("llama-gqa", "llama-mha", "qwen3-mha", "gemma3", "gemma3-multimodal")
OTHERS = tuple(name for name in VARIANTS if name not in KINDS)
TEXT_VARIANTS = tuple(name for name in VARIANTS if name != "gemma3-multimodal")


def tiny_model(name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random model of the architecture, on the CPU, in eval mode.

    Raises KeyError for a name that is not in `VARIANTS`.
    """
    config = _configs()[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, Gemma3Config):
            model = Gemma3ForConditionalGeneration(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "norm" in key:
                    parameter += 0.1 * torch.randn_like(parameter)
                elif parameter.ndim == 2 and "embed" not in key:
                    parameter *= 5.0  # logits and attention far from uniform
    return model.to(dtype).eval()


class SquaredNorm(nn.Module):
    """A norm whose scale is neither its weight nor 1 + weight."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight**2


def random_tokens(batch: int = 2, length: int = 12, *, seed: int = 0) -> torch.Tensor:
    """Token ids (batch, length) without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, length), generator=generator)
