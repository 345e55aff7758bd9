"""Adapted tiny models with random adapter weights, for the tests of RoAE."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from rosa import RosaConfig
from tests.support.tiny_models import random_tokens, tiny_model

TOKENS = random_tokens()
SMALL: dict[str, Any] = {"r": 6, "alpha": 0.5, "r_low": 0.5}


def adapted(
    name: str, *, dtype: torch.dtype = torch.float32, random: bool = True, **config: Any
) -> PeftModel:
    """A tiny model with a small RoSA adapter whose every parameter is far from its start."""
    model = get_peft_model(tiny_model(name, dtype=dtype), RosaConfig(**{**SMALL, **config})).eval()
    if random:
        randomize(model)
    return model


def randomize(model: PeftModel, *, seed: int = 1) -> None:
    """Draws every trainable weight of RoAE or DyPAM, B as well, and adds noise to the norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                of_tuner = "rosa_" in name or "dypam_" in name
                parameter.mul_(0 if of_tuner else 1).add_(noise.to(parameter.dtype))


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The tensors of the adapter as its file holds them."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    return model(input_ids=tokens).logits


def gradients(model: nn.Module, tokens: Tensor = TOKENS) -> dict[str, Tensor]:
    """The gradients of one training step, by parameter."""
    model.zero_grad()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainable(model: nn.Module) -> set[str]:
    """Names of the parameters that train."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
