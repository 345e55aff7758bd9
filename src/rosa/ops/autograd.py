"""The modulation as an autograd function that keeps little for the backward pass.

Autograd would keep several times what the plain formulas need. Here the backward pass gets the
low-frequency pairs, rotated and compact, and the tensor that the signal is made of, which other
operations keep anyway; SiLU is recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rosa.ops import modulation
from rosa.ops.first_order import first_order
from rosa.ops.modulation import PairModulation
from rosa.ops.rotation import PairRotation
from rosa.ops.variants import Variant


class PairSignal(NamedTuple):
    """The signal of the low-frequency pairs of the queries or keys in a projection's output.

    Attributes:
        pairs_of: gives a view of the pairs (..., 2, n) in a tensor shaped like the output.
        source, activate: as of `rosa.ops.modulation.PairModulation`.
    """

    pairs_of: Any  # Callable[[Tensor], Tensor]
    source: Tensor
    activate: bool


def modulate(
    output: Tensor,
    signals: Sequence[PairSignal],
    alpha: float,
    rotation: PairRotation | None,
    *,
    in_place: bool = False,
    variant: Variant = "autograd",
) -> Tensor:
    """A projection's output, of any shape, with its low-frequency pairs modulated (Eq. 4).

    Args:
        signals: of queries, of keys, or of both, where a fused projection makes both.
        rotation: the rotation that follows, with α in it ("post"); None for "pre".
        in_place: write into `output`'s memory. Only for an output that has no other reader and is
            not saved for backward; the returned tensor takes its place.
        variant: "triton" runs each of the `signals` as one kernel.

    Returns a tensor of output's shape and dtype; corrections are formed in the widest dtype.
    """
    operations = _operations(variant)
    if torch.is_grad_enabled() and (
        output.requires_grad or any(signal.source.requires_grad for signal in signals)
    ):
        pairs_of, sources, activate = zip(*signals, strict=True)
        return _Modulate.apply(
            output, pairs_of, activate, alpha, rotation, in_place, operations, *sources
        )
    result = output if in_place else output.clone()
    for of, source, active in signals:
        by = PairModulation(source, active, alpha, rotation)
        operations.modulate_pairs_(of(result), by, keep=False)
    return result


def _operations(variant: Variant) -> ModuleType:
    if variant != "triton":
        return modulation
    from rosa.ops import triton_kernels  # an optional package

    return triton_kernels


class _Modulate(torch.autograd.Function):
    """`modulate` where a gradient is wanted."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        pairs_of: Sequence[Callable[[Tensor], Tensor]],
        activate: Sequence[bool],
        alpha: float,
        rotation: PairRotation | None,
        in_place: bool,
        operations: ModuleType,
        *sources: Tensor,
    ) -> Tensor:
        # Detached, since for an output that is a view (a linear layer with a bias gives one)
        # autograd would copy whole gradients to tell the view from the rest of its base. The
        # version counter is shared: an operation that did keep `output` for backward raises.
        result = output.detach() if in_place else output.clone()
        kept = [
            operations.modulate_pairs_(
                of(result),
                PairModulation(source, active, alpha, rotation),
                keep=source.requires_grad,
            )
            for of, source, active in zip(pairs_of, sources, activate, strict=True)
        ]
        torch.autograd.graph.increment_version(result)  # what a kernel writes is not counted
        ctx.save_for_backward(*kept, *sources, *(rotation or ()))
        ctx.pairs_of, ctx.activate = pairs_of, activate
        ctx.alpha, ctx.operations = alpha, operations
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        count, saved = len(ctx.pairs_of), ctx.saved_tensors
        rotation = PairRotation(*saved[2 * count :]) if len(saved) > 2 * count else None
        write = ctx.needs_input_grad[0]
        to_output = gradient.clone() if write else gradient
        to_sources = [
            ctx.operations.modulate_pairs_backward(
                of(to_output), kept, PairModulation(source, active, ctx.alpha, rotation), write
            )
            for of, kept, source, active in zip(
                ctx.pairs_of, saved[:count], saved[count : 2 * count], ctx.activate, strict=True
            )
        ]
        return to_output if write else None, *[None] * 6, *to_sources
