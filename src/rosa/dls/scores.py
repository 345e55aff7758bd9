"""How much each layer's norms want to change: Eq. 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rosa.common.distributed import broadcast_from_rank0
from rosa.dls.collectives import collective_device, mean_gradients


def layer_scores(
    norms: Sequence[Sequence[torch.nn.Parameter]], loss_scale: float = 1.0, group: Any = None
) -> list[float]:
    """Score(i) = sqrt(sum of the squared L2 norms of the gradients of layer i's norms), Eq. 5.

    Args:
        norms: for each layer the parameters (weight, and bias if any) of its counted norms. An
            absent gradient (None) counts as zero.
        loss_scale: the factor by which the gradients are still too large (a `GradScaler`'s).
        group: the processes that train together, all of which call this; None is all there are.

    Returns:
        One float per layer, the same in every process; summed in float64 whatever the gradients'
        dtype. NaN and infinity come through.
    """
    parameters = [p for layer in norms for p in layer]
    gradients = iter(mean_gradients(parameters, group))
    squares = [sum(_squared_norm(next(gradients)) for _ in layer) for layer in norms]
    scores = [math.sqrt(square) / loss_scale for square in squares]
    return broadcast_from_rank0(scores, collective_device(parameters), group)


def _squared_norm(gradient: torch.Tensor | None) -> float:
    if gradient is None:
        return 0.0
    # On the CPU: float64 is not there on every device, and a norm's gradient is small.
    values = gradient.detach().to("cpu", torch.float64).flatten()
    return torch.dot(values, values).item()
