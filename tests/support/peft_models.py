"""Tiny Llama, Qwen2, Gemma3 and GPT-J models with adapters, for the tests of PEFT's contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gptj import GPTJConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config

from rosa import RosaConfig
from tests.support import adapters
from tests.support.adapters import randomize

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma3": lambda: Gemma3TextConfig(
        **SIZES, query_pre_attn_scalar=8, sliding_window=8, tie_word_embeddings=True,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gptj": lambda: GPTJConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64, n_inner=48,
        bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    ),
}  # fmt: skip
SMALL: dict[str, Any] = {"r": 4, "alpha": 0.5, "r_low": 0.5}
WEIGHTS = "adapter_model.safetensors"
TOKENS = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
logits = partial(adapters.logits, tokens=TOKENS)
gradients = partial(adapters.gradients, tokens=TOKENS)
# In `make test` Llama's block, and GPT-J's with parallel branches and norms with biases.
each_kind = pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "gptj",
        pytest.param("qwen2", marks=pytest.mark.slow),
        pytest.param("gemma3", marks=pytest.mark.slow),
    ],
)
# Where input and output embeddings may be one tensor.
each_kind_tied_or_not = pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "gemma3",
        pytest.param("qwen2", marks=pytest.mark.slow),
        pytest.param("gptj", marks=pytest.mark.slow),
    ],
)


def base(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A tiny random model, the same at every call, with norms that are not all ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                norm = "norm" in name or ".ln_" in name
                parameter.copy_(parameter + 0.1 * torch.randn_like(parameter))
                parameter.mul_(1 if norm or "embed" in name else 5)
    return model.to(dtype).eval()


def config(**changes: Any) -> RosaConfig:
    return RosaConfig(**{**SMALL, **changes})


def wrapped(kind: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> PeftModel:
    """The tiny model with an adapter whose every weight is random."""
    model = get_peft_model(base(kind, dtype), config(**changes)).eval()
    randomize(model)
    return model


def of(adapter: str, model: nn.Module) -> set[str]:
    """Names of an adapter's parameters."""
    return {name for name, _ in model.named_parameters() if f".{adapter}." in name}


def layer_of(name: str) -> int:
    return int(name.partition(".layers." if ".layers." in name else ".h.")[2].partition(".")[0])
