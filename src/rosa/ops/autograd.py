"""The modulation with a backward pass that keeps little: a slice of z and the pre-activation.

What autograd would keep of the plain formulas is several times what they need. Here the backward
pass gets the low-frequency pairs of z, compact, and the tensor that the signal is made of, which
other operations keep anyway; SiLU and the turned pairs are computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    if torch.is_grad_enabled() and (output.requires_grad or source.requires_grad):
        return _Modulate.apply(output, source, low, alpha, turning, activate, in_place)
    result = output if in_place else output.clone()
    _correct(low(result), signal_of(source, activate), alpha, turning)
    return result


def signal_of(source: Tensor, activate: bool) -> Tensor:
    """S, of S or of P."""
    return torch.nn.functional.silu(source) if activate else source


def _correct(z: Tensor, signal: Tensor, alpha: float, turning: Turning | None) -> None:
    """z + α·R⁻¹·(S ⊙ R·z) in place of z (..., 2, n), a symmetric map."""
    signal = signal.reshape(z.shape)
    if turning is None:
        z.addcmul_(z, signal, value=alpha)
    else:
        turning.add_back(z, turning.there(z) * signal)


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
    ) -> Tensor:
        # Under another name, since for an output that is a view (a linear layer with a bias gives
        # one) autograd would copy whole gradients to tell the view from the rest of its base.
        # The version counter is shared: who did keep `output` for backward is told so.
        result = output.detach() if in_place else output.clone()
        z = low(result)
        # A copy: the memory of the slice is that of the whole output, which goes.
        kept = z.clone(memory_format=torch.contiguous_format) if source.requires_grad else None
        ctx.save_for_backward(kept, source, *(turning or ()))
        ctx.low, ctx.alpha, ctx.activate = low, alpha, activate
        _correct(z, signal_of(source, activate), alpha, turning)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        kept, source, *turns = ctx.saved_tensors
        turning = Turning(*turns) if turns else None
        to_output = to_source = None
        if ctx.needs_input_grad[1]:
            g = ctx.low(gradient)
            if turning is None:
                to_signal = (kept * g).mul_(ctx.alpha)
            else:
                to_signal = turning.there(g) * turning.there_scaled(kept)
            to_source = to_signal.to(source.dtype).reshape(source.shape)
            if ctx.activate:
                to_source = torch.ops.aten.silu_backward(to_source, source)
        if ctx.needs_input_grad[0]:
            to_output = gradient.clone()
            _correct(ctx.low(to_output), signal_of(source, ctx.activate), ctx.alpha, turning)
        return to_output, to_source, None, None, None, None, None
