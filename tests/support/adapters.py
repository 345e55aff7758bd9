"""Adapted tiny models with random adapter weights, for the tests of RoAE."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor

from rosa import RosaConfig
from tests.support.tiny_models import tiny_model

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
    """Draws every trainable weight of RoAE, so that B is not zero, and adds noise to the norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.mul_(0 if "rosa_" in name else 1).add_(noise.to(parameter.dtype))


def adapter_state(model: PeftModel) -> dict[str, Tensor]:
    """The tensors of the adapter as its file holds them."""
    return get_peft_model_state_dict(model, save_embedding_layers=False)
