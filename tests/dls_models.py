"""What the DLS tests train: a tiny Llama of six layers, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LAYERS = 6
VOCABULARY = 64


def tiny_llama(dtype: torch.dtype = torch.float64, layers: int = LAYERS) -> LlamaForCausalLM:
    """A random Llama with a few thousand parameters; the same at every call."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
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


def word_tokenizer() -> PreTrainedTokenizerFast:
    """The words w0, w1, ... as tokens."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
