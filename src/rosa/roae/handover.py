"""What a layer hands to the hooks of other modules for the length of one call.

It lies in the `__dict__` of the module whose hook will read it, and is gone when the call is over.

Under `torch.compile`, a gradient-checkpointed layer is traced as a graph of its own, in which
Dynamo forbids changes of anything that outlives it: it cannot see that these are undone before the
layer ends, and would break the graph at every layer. So it is told not to check them. The graph
that is recomputed in the backward pass holds the tensors themselves, no dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_PENDING = "_rosa_pending"
# Absent before PyTorch 2.9, where a compiled model with gradient checkpointing is a slower one.
_UNCHECKED = "_disable_side_effect_safety_checks_for_current_subtracer"


def hand_over(module: nn.Module, item: Any) -> None:
    """Adds what the module's hook shall find in `handed_over(module)` until `take_back`."""
    _unchecked(_append, module, item)


def handed_over(module: nn.Module) -> Iterable[Any]:
    """What lies on the module, in the order in which it came."""
    return module.__dict__.get(_PENDING, ())


def take_back(modules: Iterable[nn.Module]) -> None:
    """Removes from each module what lies there, if anything."""
    _unchecked(_clear, modules)


def _append(module: nn.Module, item: Any) -> None:
    module.__dict__.setdefault(_PENDING, []).append(item)


def _clear(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.__dict__.pop(_PENDING, None)


def _unchecked(change: Callable[..., None], *args: Any) -> None:
    if torch.compiler.is_compiling() and hasattr(torch._dynamo.utils, _UNCHECKED):
        getattr(torch._dynamo.utils, _UNCHECKED)(change, *args)
    else:
        change(*args)
