"""Where DLS can work: finds the optimizer that really steps, and refuses what would break it."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from rosa.errors import RosaError


def unwrap_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The PyTorch optimizer inside a wrapper such as Accelerate's, whose hooks fire on real steps.

    Raises:
        RosaError: it is not a PyTorch optimizer, or one under which frozen layers would move.
    """
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RosaError(
            f"DLS needs a torch.optim.Optimizer, not {type(optimizer).__name__}: it works in the "
            "optimizer's step hooks"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise RosaError(
            "DLS cannot freeze layers under LBFGS, which treats all parameters as one vector: use "
            "AdamW, SGD or another optimizer that passes over parameters without gradients"
        )
    return optimizer


def refuse_engines(model: nn.Module, optimizer: Any) -> None:
    """Raise a `RosaError` where several processes or a sharding engine own the parameters."""
    if _uses_deepspeed(model, optimizer):
        raise RosaError(
            "DLS does not work under DeepSpeed, which keeps gradients and steps to itself: train "
            "in one process without it, or set dls to none"
        )
    if _switched_on("ACCELERATE_USE_FSDP") or _wrapped_in(
        model, "FullyShardedDataParallel", "FSDPModule"
    ):
        raise RosaError(
            "DLS does not work under FSDP, which shards the layers' parameters: train in one "
            "process without it, or set dls to none"
        )
    if processes() > 1 or _wrapped_in(model, "DistributedDataParallel"):
        raise RosaError(
            f"DLS works in one process without DDP, and this run has {processes()}: start it "
            "without torchrun or accelerate launch, or set dls to none"
        )


def refuse_foreign_optimizer(
    optimizer: torch.optim.Optimizer, trainable: Collection[nn.Parameter]
) -> None:
    """Raise a `RosaError` where the optimizer holds none of the layers' trainable parameters."""
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(trainable):
        raise RosaError(
            f"the optimizer ({type(optimizer).__name__}) holds none of the trainable parameters "
            "of the model's layers: pass DLS the optimizer that trains them"
        )


def processes() -> int:
    """How many processes train together: from torch.distributed, else from the launcher."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    launched = os.environ.get("WORLD_SIZE", "1")
    return int(launched) if launched.isdigit() else 1


def _uses_deepspeed(model: nn.Module, optimizer: Any) -> bool:
    return (
        _switched_on("ACCELERATE_USE_DEEPSPEED")
        or _comes_from(model, "deepspeed")
        or _comes_from(optimizer, "deepspeed")
        or type(optimizer).__name__ == "DeepSpeedOptimizerWrapper"
        or any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    )


def _wrapped_in(model: nn.Module, *names: str) -> bool:
    """Whether any module of the model is of a class of one of these names."""
    return any(
        base.__name__ in names for module in model.modules() for base in type(module).__mro__
    )


def _switched_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


def _comes_from(thing: Any, package: str) -> bool:
    return type(thing).__module__.partition(".")[0] == package
