"""Linear maps of an activation, of which the backward pass needs what the activation was made of.

    y = W_n···W_1·SiLU(P)

Autograd would keep SiLU(P) and every product but the last. Here P, which others keep anyway, is all
that is kept; the rest is computed again, but for y. What `rosa.ops.recompute` does for any modules,
with less ado for those that RoSA has by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from rosa.ops.first_order import first_order
from rosa.ops.recompute import (
    autocast_of,
    only_multiplies,
    recomputed,
    same_autocast,
    worth_recomputing,
)

_SILU = nn.SiLU()


def linear_of_silu(modules: Sequence[nn.Module], p: Tensor) -> Tensor:
    """What the modules make of SiLU(P), one after another: (..., d') of P (..., d), which alone is
    kept for the backward pass. Modules that do more than multiply are `recomputed`."""
    if all(only_multiplies(module) for module in modules):
        weights: list[Any] = [module.weight for module in modules]
        if worth_recomputing(p, weights):
            return _LinearOfSilu.apply(p, *weights)
    return recomputed((_SILU, *modules), p)


class _LinearOfSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, *weights: Tensor) -> Tensor:
        ctx.autocast = autocast_of(p)
        ctx.save_for_backward(p, *weights)
        with same_autocast(ctx.autocast):
            return _inputs(p, weights)[-1]

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        p, *weights = ctx.saved_tensors
        to_weights: list[Tensor | None] = [None] * len(weights)
        with same_autocast(ctx.autocast):
            inputs = _inputs(p, weights[:-1])
            for i in reversed(range(len(weights))):
                if ctx.needs_input_grad[1 + i]:
                    product = _rows(gradient).t() @ _rows(inputs[i])
                    to_weights[i] = product.to(weights[i].dtype)
                gradient = gradient @ weights[i]
        to_p = None
        if ctx.needs_input_grad[0]:
            to_p = torch.ops.aten.silu_backward(gradient.to(p.dtype), p)
        return to_p, *to_weights


def _inputs(p: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """SiLU(P), and what each of the weights makes of the one before."""
    x = [silu(p)]
    for weight in weights:
        x.append(linear(x[-1], weight))
    return x


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
