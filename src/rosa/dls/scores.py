"""How much each layer's norms want to change: Eq. 5."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def layer_scores(
    norms: Sequence[Sequence[torch.nn.Parameter]], loss_scale: float = 1.0
) -> list[float]:
    """Score(i) = sqrt(sum of the squared L2 norms of the gradients of layer i's norms), Eq. 5.

    Args:
        norms: for each layer the parameters (weight, and bias if any) of its counted norms. An
            absent gradient (None) counts as zero.
        loss_scale: the factor by which the gradients are still too large (a `GradScaler`'s).

    Returns:
        One float per layer; summed in float64 whatever the gradients' dtype. NaN and infinity
        come through.
    """
    squares = [sum(_squared_norm(p.grad) for p in layer if p.grad is not None) for layer in norms]
    return [math.sqrt(square) / loss_scale for square in squares]


def _squared_norm(gradient: torch.Tensor) -> float:
    # On the CPU: float64 is not there on every device, and a norm's gradient is small.
    values = gradient.detach().to("cpu", torch.float64).flatten()
    return torch.dot(values, values).item()
