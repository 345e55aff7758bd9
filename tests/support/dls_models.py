"""What the DLS tests train: a tiny Llama of six layers, adapters on it, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.choice import Policy

LAYERS = 6
VOCABULARY = 64
NORMS = ["input_layernorm", "post_attention_layernorm"]
EVERY_THIRD = DlsConfig(interval=3, warmup=2, p_exploit=0.5, seed=1)


def every_third(policy: Policy) -> DlsConfig:
    """`EVERY_THIRD` under another policy."""
    return (
        EVERY_THIRD
        if policy == "scores"
        else DlsConfig(interval=3, warmup=2, seed=1, policy=policy)
    )


SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}


def tiny_llama(dtype: torch.dtype = torch.float64, layers: int = LAYERS) -> LlamaForCausalLM:
    """A random Llama with a few thousand parameters; the same at every call."""
    return _random(LlamaForCausalLM, LlamaConfig(num_hidden_layers=layers, **SIZES), dtype)


def tiny_qwen2(dtype: torch.dtype = torch.float64) -> Qwen2ForCausalLM:
    """The same as a Qwen2, whose projections have biases."""
    return _random(Qwen2ForCausalLM, Qwen2Config(num_hidden_layers=LAYERS, **SIZES), dtype)


def _random(kind: type, config: object, dtype: torch.dtype) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config)
        # Large weights, so that layers differ in their scores from the start.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5)
    return model.to(dtype).train()


def batch(seed: int, size: int = 4) -> dict[str, torch.Tensor]:
    """Random token ids as input and label, (size, 8)."""
    tokens = torch.randint(
        1, VOCABULARY, (size, 8), generator=torch.Generator().manual_seed(1000 + seed)
    )
    return {"input_ids": tokens, "labels": tokens}


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a tiny Llama, through whatever PEFT wrapped around it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(inner.model.layers)


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters."""
    return [p.detach().clone() for p in module.parameters()]


def optimizer_state(
    optimizer: torch.optim.Optimizer, module: nn.Module
) -> Iterator[tuple[str, torch.Tensor]]:
    """The optimizer's tensors for the parameters of `module`, copied."""
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                yield f"{name}.{key}", value.detach().clone()


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(left) == len(right) and all(map(torch.equal, left, right))


def assert_same_history(
    found: list[dict[str, Any]], expected: list[dict[str, Any]], rel: float
) -> None:
    """Equal choices at equal steps, by scores that differ by rounding only."""
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        if None not in other["scores"]:  # those of a policy that needs none
            assert one["scores"] == pytest.approx(other["scores"], rel=rel)
            one, other = ({**record, "scores": 0} for record in (one, other))
        assert one == other


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The words w0, w1, ... as tokens."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")


def full() -> nn.Module:
    return tiny_llama()


def lora() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


def lora_and_norms() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=NORMS)
    return get_peft_model(tiny_llama(), config)


def rosa() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), RosaConfig(r=4, r_low=0.5, alpha=1.0))


def rosa_relative() -> nn.Module:
    torch.manual_seed(0)
    config = RosaConfig(r=4, r_low=0.5, alpha=1.0, norm_parametrization="relative")
    return get_peft_model(tiny_llama(), config)


MODELS = pytest.mark.parametrize("make", [full, lora, lora_and_norms, rosa])


def adamw(model: nn.Module, **changes: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, "weight_decay": 0.1, **changes})


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    model(**batch(t)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def clipped_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dls: DynamicLayerSelection | None,
    inputs: dict[str, torch.Tensor],
    clip: float,
) -> torch.Tensor:
    """A step of a loop that selects (unless `dls` is None), then clips; the norm before it."""
    model(**inputs).loss.backward()
    if dls is not None:
        dls.select()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return norm


def norm_weights(layer: nn.Module) -> list[nn.Parameter]:
    """The weights of the layer's two norms, of the copies that PEFT trains where it does."""
    norms = [getattr(layer, name) for name in NORMS]
    # LN tuning's wrapper shows the untrained weight; that of `modules_to_save` its active copy's.
    trained = [getattr(norm, "ln_tuning_layers", {"default": norm})["default"] for norm in norms]
    return [norm.weight for norm in trained]


def norm_gradients(model: nn.Module) -> list[list[torch.Tensor]]:
    """Gradients of the two norms of each layer, whoever wraps them."""
    return [[w.grad.clone() for w in norm_weights(layer)] for layer in decoder_layers(model)]


def held_outside(model: nn.Module) -> set[nn.Parameter]:
    """The parameters with a name outside the layers, alone or in addition to one in a layer."""
    names = model.named_parameters(remove_duplicate=False)
    return {p for name, p in names if ".layers." not in name}
