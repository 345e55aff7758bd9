"""What an attention module hands to the modules inside it, for the length of one of its calls.

It is stored in the `__dict__` of the receiving module. Each thread has its own: several may run one
model at once, as those of a server do.

Under `torch.compile`, a gradient-checkpointed layer is traced as a separate graph, in which
Dynamo forbids changes of anything that outlives it: it cannot see that these are undone before the
layer ends, and would break the graph at every layer. So that check is disabled. The graph
that is recomputed in the backward pass holds the tensors themselves, no dictionary. A graph knows
no threads: what it hands over is stored separately, and it reads that of all threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

import torch
from torch import nn

_PENDING = "_rosa_pending"  # of a compiler
_BY_THREAD = "_rosa_pending_by_thread"
# Absent before PyTorch 2.9, where a compiled model with gradient checkpointing is a slower one.
_UNCHECKED = "_disable_side_effect_safety_checks_for_current_subtracer"


def set_pending(modules: Iterable[nn.Module], values: Iterable[Any]) -> None:
    """Hands each module a value, until `clear_pending`."""
    if torch.compiler.is_compiling():
        for module, value in zip(modules, values, strict=True):
            _unchecked(_append, module, value)
        return
    thread = get_ident()
    for module, value in zip(modules, values, strict=True):
        module.__dict__.setdefault(_BY_THREAD, {}).setdefault(thread, []).append(value)


def pending_of(module: nn.Module) -> list[Any]:
    """What the module was handed and has not been taken from it."""
    by_thread = module.__dict__.get(_BY_THREAD, {})
    if torch.compiler.is_compiling():
        values = [value for own in by_thread.values() for value in own]
    else:
        values = by_thread.get(get_ident(), [])
    return [*module.__dict__.get(_PENDING, ()), *values]


def clear_pending(modules: Iterable[nn.Module]) -> None:
    """Takes from each module what it was handed, if anything."""
    if torch.compiler.is_compiling():
        _unchecked(_clear, modules)
    else:
        thread = get_ident()
        for module in modules:
            module.__dict__.get(_BY_THREAD, {}).pop(thread, None)


def forget_pending(module: nn.Module) -> None:
    """Removes every trace of this from a module."""
    module.__dict__.pop(_PENDING, None)
    module.__dict__.pop(_BY_THREAD, None)


def _append(module: nn.Module, value: Any) -> None:
    module.__dict__.setdefault(_PENDING, []).append(value)


def _clear(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.__dict__.pop(_PENDING, None)


def _unchecked(change: Callable[..., None], *args: Any) -> None:
    if hasattr(torch._dynamo.utils, _UNCHECKED):
        getattr(torch._dynamo.utils, _UNCHECKED)(change, *args)
    else:
        change(*args)
