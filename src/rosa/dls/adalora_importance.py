"""AdaLoRA under DLS: the ranks of a frozen layer keep the importance that they had.

AdaLoRA moves ranks between the adapted modules by an importance that it averages from the
gradients of every step, and frozen layers have none. So while a layer is frozen its averages stand
still; of a layer that was never trained they are zero. The budget is that of the whole model: ranks
are taken from frozen layers too (their singular values are set to zero), by what is known of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from rosa.errors import RosaError

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # PEFT's, by the names of parameters


class _Parameters(NamedTuple):
    """Some parameters of a model, in the one way in which PEFT's allocator asks for them."""

    found: list[tuple[str, nn.Parameter]]

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self.found


def hold_importance(model: nn.Module, around: Iterable[nn.Module]) -> Callable[[], None]:
    """Let AdaLoRA's `update_and_allocate` pass over the layers that have no gradient.

    Args:
        model: what is trained.
        around: the modules around its list of layers, AdaLoRA's own among them.

    Returns:
        What undoes it. Nothing is done, and nothing undone, where there is no AdaLoRA.

    Raises:
        RosaError: the model is what is inside AdaLoRA.
    """
    allocators = [m.__dict__["rankallocator"] for m in around if "rankallocator" in m.__dict__]
    if not allocators and any(".lora_E." in name for name, _ in model.named_parameters()):
        raise RosaError(
            "DLS was given a model inside AdaLoRA and cannot see how it moves its ranks: pass DLS "
            "what get_peft_model returned"
        )
    for allocator in allocators:
        allocator.update_ipt = functools.partial(_update_ipt, allocator)

    def undo() -> None:
        for allocator in allocators:
            allocator.__dict__.pop("update_ipt", None)

    return undo


def _update_ipt(allocator: Any, model: nn.Module) -> None:
    """PEFT's `RankAllocator.update_ipt` on the parameters that have a gradient."""
    name = allocator.adapter_name
    adapted = [(key, p) for key, p in model.named_parameters() if "lora_" in key and name in key]
    trained = [(key, p) for key, p in adapted if p.grad is not None]
    if not trained:
        raise RosaError(
            "AdaLoRA moves ranks by the gradients of the step, and there are none: call "
            "update_and_allocate between optimizer.step() and optimizer.zero_grad()"
        )
    type(allocator).update_ipt(allocator, _Parameters(trained))
    for key, parameter in adapted:
        for average in _AVERAGES:
            getattr(allocator, average).setdefault(key, torch.zeros_like(parameter))
