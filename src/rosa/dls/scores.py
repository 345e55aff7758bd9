"""Layer scores (Eq. 5) from the gradients of the layers' norms, averaged over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from rosa.common.distributed import broadcast_from_rank0, world_size


def layer_scores(
    norms: Sequence[Sequence[torch.nn.Parameter]],
    loss_scale: float = 1.0,
    group: Any = None,
    factors: Mapping[torch.nn.Parameter, Callable[[], torch.Tensor]] | None = None,
) -> list[float]:
    """Score(i) = sqrt(sum of the squared L2 norms of the gradients of layer i's norms), Eq. 5.

    A collective. An absent gradient counts as zero; NaN and infinity are passed on.

    Args:
        norms: for each layer the parameters (weight, and bias if any) of its scored norms.
        loss_scale: what the gradients are still multiplied by (a `GradScaler`'s scale).
        group: the ranks that train together; None is all of them.
        factors: what gradients are multiplied by first, as `rosa.dls.layers.score_factors` says.

    Returns:
        One float per layer, equal on all ranks; summed in float64 whatever the gradients' dtype.
    """
    parameters = [p for layer in norms for p in layer]
    by = {} if factors is None else {p: _full(factor().detach()) for p, factor in factors.items()}
    gradients = iter(mean_gradients(parameters, group))
    squares = [sum(_squared_norm(next(gradients), by.get(p)) for p in layer) for layer in norms]
    scores = [math.sqrt(square) / loss_scale for square in squares]
    return broadcast_from_rank0(scores, collective_device(parameters), group)


def mean_gradients(
    parameters: Sequence[torch.nn.Parameter], group: Any = None
) -> list[torch.Tensor | None]:
    """Gradients averaged over the ranks of `group`; a collective.

    Gradients that DDP has averaged are equal on all ranks and stay as they are. Those of norms that
    are only scored, which DDP does not know, are averaged here. FSDP2 has averaged the gradient of
    a sharded parameter, and its shards are gathered.

    Returns:
        One tensor per parameter, of its shape; float64 if there are several ranks. An absent
        gradient is None in a single process, else it counts as zeros.
    """
    full = [None if p.grad is None else _full(p.grad) for p in parameters]
    if world_size(group) == 1:
        return full
    plain = [i for i, p in enumerate(parameters) if not isinstance(p, DTensor)]
    if plain:
        parts = [_flat_float64(full[i], parameters[i]) for i in plain]
        flat = torch.cat(parts) / world_size(group)
        distributed.all_reduce(flat, group=group)
        for i, mean in zip(plain, flat.split([len(part) for part in parts]), strict=True):
            full[i] = mean.view(parameters[i].shape)
    return full


def collective_device(parameters: Sequence[torch.nn.Parameter]) -> str | torch.device:
    """The device of collectives; a sharded parameter itself may be offloaded to the CPU."""
    first = parameters[0]
    return first.device_mesh.device_type if isinstance(first, DTensor) else first.device


def _squared_norm(gradient: torch.Tensor | None, factor: torch.Tensor | None) -> float:
    if gradient is None:
        return 0.0
    # On the CPU, as not every device has float64; a norm's gradient is small.
    values = gradient.detach().to("cpu", torch.float64).flatten()
    if factor is not None:
        values = values * factor.to("cpu", torch.float64).flatten()
    return torch.dot(values, values).item()


def _flat_float64(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    values = torch.zeros_like(parameter) if gradient is None else gradient
    return values.detach().flatten().double()


def _full(gradient: torch.Tensor) -> torch.Tensor:
    if not isinstance(gradient, DTensor):
        return gradient
    mesh, local = gradient.device_mesh, gradient.to_local()
    if local.device.type != mesh.device_type:  # offloaded to the CPU, which has no collectives
        local = local.to(mesh.device_type)
        layout: dict[str, Any] = {"shape": gradient.shape, "stride": gradient.stride()}
        gradient = DTensor.from_local(local, mesh, gradient.placements, **layout)
    return gradient.full_tensor()
