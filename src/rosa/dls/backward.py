"""A hook for the end of a backward pass: all gradients are there, and not clipped yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


def on_backward_end(
    module: nn.Module, act: Callable[[], None], begin: Callable[[], None] = lambda: None
) -> RemovableHandle:
    """Call `act` at the end of every backward pass through an output of `module`.

    The first gradient that reaches an output calls `begin`, before anything is recomputed, and
    queues `act` with the autograd engine, which runs it once all gradients are computed. DDP and
    FSDP2 reduce theirs in queued calls too, so `act` is queued once more behind them. An output
    belongs to the outermost pass: nested ones (reentrant checkpointing) do not call `act` early.
    """
    engine = torch.autograd.Variable._execution_engine
    queued = False

    def requeue() -> None:
        nonlocal queued
        queued = False
        engine.queue_callback(act)

    def queue(_gradient: torch.Tensor) -> None:
        nonlocal queued
        if not queued:
            queued = True
            begin()
            engine.queue_callback(requeue)

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal queued
        queued = False  # a backward pass that failed never ran what it had queued
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                value.register_hook(queue)

    return module.register_forward_hook(watch)
