"""`ATTACHED` marks a model that DLS is attached to; a warning for training that should have DLS.

`RosaConfig(dls=...)` only configures the training: the selection itself has to be attached to an
optimizer. The first step of an optimizer that holds the adapter's parameters shows that it is not.
"""

from __future__ import annotations

import warnings
import weakref
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

ATTACHED = "_rosa_dls_attached"
MESSAGE = (
    "this RoSA adapter asks for dynamic layer selection (dls=...), but none is attached to the "
    "optimizer: every layer is trained. Create rosa.DynamicLayerSelection(model, optimizer, ...) "
    "before the first step, or give the Trainer a rosa.DlsCallback"
)

# One hook for all models, as a hook must not remove itself. Models are held weakly.
_unstepped: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_unless_attached(model: nn.Module) -> None:
    """Warn, once, if the first optimizer step on the model's parameters is made without DLS."""
    _install_hook()
    _unstepped.add(model)


@cache
def _install_hook() -> None:
    register_optimizer_step_pre_hook(_check_attached)


def _check_attached(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _unstepped:
        return
    held = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    stepped = [model for model in _unstepped if not held.isdisjoint(model.parameters())]
    if stepped and all(float(group.get("lr", 1.0)) == 0 for group in optimizer.param_groups):
        return  # nothing is trained: torch.distributed.checkpoint builds an optimizer's state so
    for model in stepped:
        _unstepped.discard(model)
        if not getattr(model, ATTACHED, False):
            warnings.warn(MESSAGE, UserWarning, stacklevel=3)
