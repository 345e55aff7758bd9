"""The modulation with a backward pass that keeps little: a slice of z and the pre-activation.

What autograd would keep of the plain formulas is several times what they need. Here the backward
pass gets the low-frequency pairs of z, turned and compact, and the tensor that the signal is made
of, which other operations keep anyway; SiLU is computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rosa.ops import plain
from rosa.ops.first_order import first_order
from rosa.ops.turning import Turning
from rosa.ops.variants import Variant

LowPairs = Callable[[Tensor], Tensor]


def modulate(
    output: Tensor,
    source: Tensor,
    low: LowPairs,
    alpha: float,
    turning: Turning | None,
    *,
    activate: bool = False,
    in_place: bool = False,
    variant: Variant = "autograd",
) -> Tensor:
    """A projection's output with its low-frequency pairs modulated.

    Args:
        output: of any shape and layout.
        source: the signal S, or with `activate` the pre-activation P of which it is SiLU(P): one
            element for each of the low pairs' dimensions, contiguous and in their order.
        low: gives a view of the low-frequency pairs in a tensor like `output`, (..., 2, n).
        alpha: α.
        turning: of the rotation that follows, α in it (stage "post"); None for stage "pre".
        in_place: write into `output`'s memory. Only for an output that nobody else reads and whose
            maker does not need it for its own backward pass; what is returned takes its place.
        variant: "triton" for the same in one kernel each way.

    Returns a tensor of output's shape and dtype; corrections are formed in the widest dtype.
    """
    operations = _operations(variant)
    if torch.is_grad_enabled() and (output.requires_grad or source.requires_grad):
        return _Modulate.apply(output, source, low, alpha, turning, activate, in_place, operations)
    result = output if in_place else output.clone()
    operations.correct(low(result), source, alpha, turning, activate, False)
    return result


def _operations(variant: Variant) -> ModuleType:
    if variant != "triton":
        return plain
    from rosa.ops import triton_kernels

    return triton_kernels


class _Modulate(torch.autograd.Function):
    """`modulate` where a gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        source: Tensor,
        low: LowPairs,
        alpha: float,
        turning: Turning | None,
        activate: bool,
        in_place: bool,
        operations: ModuleType,
    ) -> Tensor:
        # Under another name, since for an output that is a view (a linear layer with a bias gives
        # one) autograd would copy whole gradients to tell the view from the rest of its base.
        # The version counter is shared: who did keep `output` for backward is told so.
        result = output.detach() if in_place else output.clone()
        kept = operations.correct(
            low(result), source, alpha, turning, activate, source.requires_grad
        )
        torch.autograd.graph.increment_version(result)  # what a kernel writes is not counted
        ctx.save_for_backward(kept, source, *(turning or ()))
        ctx.low, ctx.alpha, ctx.activate, ctx.operations = low, alpha, activate, operations
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kept, source, *turns = ctx.saved_tensors
        turning = Turning(*turns) if turns else None
        write = ctx.needs_input_grad[0]
        to_output = gradient.clone() if write else gradient
        to_source = ctx.operations.propagate(
            ctx.low(to_output), kept, source, ctx.alpha, turning, ctx.activate, write
        )
        return to_output if write else None, to_source, None, None, None, None, None, None
