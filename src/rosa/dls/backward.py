"""Tells when a backward pass is over: the moment between the gradients and their clipping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


def at_end_of_backward(
    module: nn.Module, act: Callable[[], None], begin: Callable[[], None] = lambda: None
) -> RemovableHandle:
    """Call `act` after every backward pass that goes through an output of `module`.

    The first gradient to reach an output queues `act` with the autograd engine, which calls it
    when all gradients of the pass are there, and averaged: DDP and FSDP2 finish theirs in such
    calls too, so `act` is queued once more behind them. An output belongs to the outermost pass, so
    nested ones (re-entrant gradient checkpointing) do not call `act` early. `begin` is called by
    that first gradient, before anything behind it is recomputed.
    """
    engine = torch.autograd.Variable._execution_engine
    queued = False

    def run() -> None:
        nonlocal queued
        queued = False
        engine.queue_callback(act)

    def queue(_gradient: torch.Tensor) -> None:
        nonlocal queued
        if not queued:
            queued = True
            begin()
            engine.queue_callback(run)

    def watch(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal queued
        queued = False  # a backward that failed never ran what it had queued
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                value.register_hook(queue)

    return module.register_forward_hook(watch)
