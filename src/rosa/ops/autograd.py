"""The modulation with a backward pass that keeps little: a slice of z and the pre-activation.

What autograd would keep of the plain formulas is several times what they need. Here the backward
pass gets the low-frequency pairs of z, turned and compact, and the tensor that the signal is made
of, which other operations keep anyway; SiLU is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosa.ops import modulation as plain
from rosa.ops.first_order import first_order
from rosa.ops.rotation import Turning
from rosa.ops.variants import Variant


class Part(NamedTuple):
    """The queries or the keys in a projection's output.

    Attributes:
        low: gives a view of the low-frequency pairs in a tensor like the output, (..., 2, n).
        source: the signal S, or with `activate` the pre-activation P of which it is SiLU(P): one
            element for each of the low pairs' dimensions, contiguous and in their order.
    """

    low: Any  # Callable[[Tensor], Tensor]
    source: Tensor
    activate: bool


def modulate(
    output: Tensor,
    parts: Sequence[Part],
    alpha: float,
    turning: Turning | None,
    *,
    in_place: bool = False,
    variant: Variant = "autograd",
) -> Tensor:
    """A projection's output with its low-frequency pairs modulated.

    Args:
        output: of any shape and layout.
        parts: queries, keys, or both, as a fused projection's output has them.
        alpha: α.
        turning: of the rotation that follows, α in it (stage "post"); None for stage "pre".
        in_place: write into `output`'s memory. Only for an output that nobody else reads and whose
            maker does not need it for its own backward pass; what is returned takes its place.
        variant: "triton" for the same in one kernel each way, whatever the number of parts.

    Returns a tensor of output's shape and dtype; corrections are formed in the widest dtype.
    """
    operations = _operations(variant)
    if torch.is_grad_enabled() and (
        output.requires_grad or any(part.source.requires_grad for part in parts)
    ):
        lows, sources, activate = zip(*parts, strict=True)
        return _Modulate.apply(
            output, lows, activate, alpha, turning, in_place, operations, *sources
        )
    result = output if in_place else output.clone()
    views = [low(result) for low, _, _ in parts]
    operations.correct(views, [part[1:] for part in parts], alpha, turning)
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
        lows: Sequence[Callable[[Tensor], Tensor]],
        activate: Sequence[bool],
        alpha: float,
        turning: Turning | None,
        in_place: bool,
        operations: ModuleType,
        *sources: Tensor,
    ) -> Tensor:
        # Under another name, since for an output that is a view (a linear layer with a bias gives
        # one) autograd would copy whole gradients to tell the view from the rest of its base.
        # The version counter is shared: who did keep `output` for backward is told so.
        result = output.detach() if in_place else output.clone()
        kept = operations.correct(
            [low(result) for low in lows],
            list(zip(sources, activate, strict=True)),
            alpha,
            turning,
            [source.requires_grad for source in sources],
        )
        torch.autograd.graph.increment_version(result)  # what a kernel writes is not counted
        ctx.save_for_backward(*kept, *sources, *(turning or ()))
        ctx.lows, ctx.activate, ctx.alpha, ctx.operations = lows, activate, alpha, operations
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        count = len(ctx.lows)
        saved = ctx.saved_tensors
        kept, sources, turns = saved[:count], saved[count : 2 * count], saved[2 * count :]
        write = ctx.needs_input_grad[0]
        to_output = gradient.clone() if write else gradient
        to_sources = ctx.operations.propagate(
            [low(to_output) for low in ctx.lows],
            kept,
            list(zip(sources, ctx.activate, strict=True)),
            ctx.alpha,
            Turning(*turns) if turns else None,
            write,
        )
        return to_output if write else None, *[None] * 6, *to_sources
