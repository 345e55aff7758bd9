"""What a layer hands to the hooks of other modules for the length of one call.

It lies in the `__dict__` of the module whose hook will read it, and is gone when the call is over.
Each thread has its own: several may run one model at once, as those of a server do.

Under `torch.compile`, a gradient-checkpointed layer is traced as a graph of its own, in which
Dynamo forbids changes of anything that outlives it: it cannot see that these are undone before the
layer ends, and would break the graph at every layer. So it is told not to check them. The graph
that is recomputed in the backward pass holds the tensors themselves, no dictionary. A graph knows
no threads: what it hands over lies apart, and what it reads is all that lies there.
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


def hand_over(modules: Iterable[nn.Module], items: Iterable[Any]) -> None:
    """Lays an item on each module, which its hook finds in `handed_over` until `take_back`."""
    if torch.compiler.is_compiling():
        for module, item in zip(modules, items, strict=True):
            _unchecked(_append, module, item)
        return
    thread = get_ident()
    for module, item in zip(modules, items, strict=True):
        module.__dict__.setdefault(_BY_THREAD, {}).setdefault(thread, []).append(item)


def handed_over(module: nn.Module) -> Iterable[Any]:
    """What lies on the module, in the order in which it came."""
    by_thread = module.__dict__.get(_BY_THREAD, {})
    if torch.compiler.is_compiling():
        own = [item for items in by_thread.values() for item in items]
    else:
        own = by_thread.get(get_ident(), ())
    pending = module.__dict__.get(_PENDING)
    return [*pending, *own] if pending else own


def take_back(modules: Iterable[nn.Module]) -> None:
    """Removes from each module what lies there, if anything."""
    if torch.compiler.is_compiling():
        _unchecked(_clear, modules)
    else:
        thread = get_ident()
        for module in modules:
            module.__dict__.get(_BY_THREAD, {}).pop(thread, None)


def forget(module: nn.Module) -> None:
    """Leaves no trace of all this on the module."""
    for key in (_PENDING, _BY_THREAD):
        module.__dict__.pop(key, None)


def _append(module: nn.Module, item: Any) -> None:
    module.__dict__.setdefault(_PENDING, []).append(item)


def _clear(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.__dict__.pop(_PENDING, None)


def _unchecked(change: Callable[..., None], *args: Any) -> None:
    if hasattr(torch._dynamo.utils, _UNCHECKED):
        getattr(torch._dynamo.utils, _UNCHECKED)(change, *args)
    else:
        change(*args)
