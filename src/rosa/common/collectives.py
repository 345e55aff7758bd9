"""What the processes of a run tell one another, so that all of them make the same choice.

Each function is a collective: every process calls it at the same point of the program. In one
process they return what they are given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor


def processes(group: Any = None) -> int:
    """How many processes train together: from torch.distributed, else from the launcher."""
    if connected():
        return distributed.get_world_size(group)
    launched = os.environ.get("WORLD_SIZE", "1")
    return int(launched) if launched.isdigit() else 1


def connected() -> bool:
    """Whether processes can talk, be they one or many."""
    return distributed.is_available() and distributed.is_initialized()


def any_of(flag: bool, device: str | torch.device, group: Any = None) -> bool:
    """Whether `flag` holds in at least one process; they talk on `device`."""
    if processes(group) == 1:
        return flag
    flags = torch.tensor(float(flag), device=device)
    distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=group)
    return bool(flags)


def of_the_first(
    values: Sequence[float], parameters: Sequence[torch.nn.Parameter], group: Any = None
) -> list[float]:
    """The `values` of the group's first process, to the bit; `parameters` tell the device."""
    if processes(group) == 1:
        return list(values)
    sent = torch.tensor(values, dtype=torch.float64, device=device_of(parameters))
    first = 0 if group is None else distributed.get_global_rank(group, 0)
    distributed.broadcast(sent, first, group)
    return sent.tolist()


def mean_gradients(
    parameters: Sequence[torch.nn.Parameter], group: Any = None
) -> list[torch.Tensor | None]:
    """The gradients, averaged over the processes.

    Those that DDP averaged are equal everywhere and stay what they are; those of norms that are
    only scored, which DDP does not know, become what it would have made of them. Of a sharded
    parameter FSDP2 has averaged the gradient, and its shards are put together.

    Returns:
        One tensor per parameter, of its shape; of several processes float64. None where no
        gradient is, which counts as zeros beside the gradients of other processes.
    """
    whole = [None if p.grad is None else _whole(p.grad) for p in parameters]
    if processes(group) == 1:
        return whole
    plain = [i for i, p in enumerate(parameters) if not isinstance(p, DTensor)]
    if plain:
        parts = [_flat_float64(whole[i], parameters[i]) for i in plain]
        flat = torch.cat(parts) / processes(group)
        distributed.all_reduce(flat, group=group)
        for i, mean in zip(plain, flat.split([len(part) for part in parts]), strict=True):
            whole[i] = mean.view(parameters[i].shape)
    return whole


def _flat_float64(gradient: torch.Tensor | None, parameter: torch.Tensor) -> torch.Tensor:
    values = torch.zeros_like(parameter) if gradient is None else gradient
    return values.detach().flatten().to(torch.float64)


def device_of(parameters: Sequence[torch.nn.Parameter]) -> str | torch.device:
    """Where the processes talk: a sharded parameter may lie on the CPU, offloaded."""
    first = parameters[0]
    return first.device_mesh.device_type if isinstance(first, DTensor) else first.device


def _whole(gradient: torch.Tensor) -> torch.Tensor:
    """A sharded gradient put together; another as it is."""
    if not isinstance(gradient, DTensor):
        return gradient
    mesh, local = gradient.device_mesh, gradient.to_local()
    if local.device.type != mesh.device_type:  # offloaded to the CPU, where processes do not talk
        gradient = DTensor.from_local(
            local.to(mesh.device_type),
            mesh,
            gradient.placements,
            shape=gradient.shape,
            stride=gradient.stride(),
        )
    return gradient.full_tensor()
