"""AdaLoRA under DLS: the ranks of a frozen layer keep their importance.

AdaLoRA allocates ranks by an importance that it averages from the gradients of every step, and
frozen layers have none. So the averages of a frozen layer do not change, and those of a layer that
was never trained are zero. The rank budget is that of the whole model: frozen layers lose ranks too
(their singular values are set to zero).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from rosa.errors import RosaError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's RankAllocator, by parameter name


def keep_frozen_importance(model: nn.Module, wrappers: Iterable[nn.Module]) -> Callable[[], None]:
    """Make AdaLoRA's `update_and_allocate` skip layers without gradients; returns what undoes it.

    `wrappers` are the modules around the model's list of layers, AdaLoRA's own among them.
    """
    allocators = [m.__dict__["rankallocator"] for m in wrappers if "rankallocator" in m.__dict__]
    if not allocators and any(".lora_E." in name for name, _ in model.named_parameters()):
        raise RosaError(
            "DLS was given the model inside AdaLoRA's wrapper, where it cannot follow the ranks: "
            "pass DLS what get_peft_model returned"
        )
    for allocator in allocators:
        allocator.update_ipt = functools.partial(_update_ipt, allocator)

    def undo() -> None:
        for allocator in allocators:
            allocator.__dict__.pop("update_ipt", None)

    return undo


def _update_ipt(allocator: Any, model: nn.Module) -> None:
    """PEFT's `RankAllocator.update_ipt`, on the parameters that have a gradient."""
    name = allocator.adapter_name
    adapted = [(key, p) for key, p in model.named_parameters() if "lora_" in key and name in key]
    trained = [(key, p) for key, p in adapted if p.grad is not None]
    if not trained:
        raise RosaError(
            "AdaLoRA allocates ranks by the gradients of the step, and there are none: call "
            "update_and_allocate between optimizer.step() and optimizer.zero_grad()"
        )
    type(allocator).update_ipt(allocator, SimpleNamespace(named_parameters=lambda: trained))
    for key, parameter in adapted:
        for average in _AVERAGES:
            getattr(allocator, average).setdefault(key, torch.zeros_like(parameter))
