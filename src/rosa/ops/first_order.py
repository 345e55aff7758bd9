"""First derivatives only: second ones raise an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rosa.errors import RosaError

NO_SECOND = (
    "RoSA's own operations have no second derivatives, which were asked for; do the forward pass "
    "with `rosa.ops.use('reference')` or ROSA_OPS=reference, which is plain PyTorch"
)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch's `once_differentiable` for the `backward` of a Function, but never silent.

    PyTorch's node that raises leads nowhere, so that `torch.autograd.grad` with chosen inputs (a
    Hessian-vector product) never comes to it: the result lacks terms. This one leads to the
    gradient and to what was saved, and raises RosaError.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *gradients: Any) -> Any:
        results = once(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        own = [result.detach() for result in results if result is not None]
        inputs = [t for t in (*gradients, *ctx.saved_tensors) if t is not None]
        raising = iter(_RaiseInBackward.apply(len(own), *own, *inputs))
        return tuple(None if result is None else next(raising) for result in results)

    return checked


class _RaiseInBackward(torch.autograd.Function):
    """The first `count` tensors; raises where a gradient of theirs to any of all is wanted."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RosaError(NO_SECOND)
