"""Linear maps of SiLU(P), for whose backward pass only P is kept.

    y = W_n···W_1·SiLU(P)

Autograd would keep SiLU(P) and every product but the last. Here P, which others keep anyway, is all
that is kept; the rest but y is recomputed, faster than `rosa.ops.recompute` does for any modules.
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
    is_plain_linear,
    run_checkpointed,
    same_autocast,
    saves_memory,
)

_SILU = nn.SiLU()


def linear_of_silu(modules: Sequence[nn.Module], p: Tensor) -> Tensor:
    """SiLU(P) (..., d) through the modules, one after another: (..., d'). Keeps only P for
    backward; modules that do more than multiply are run by `run_checkpointed`."""
    if all(is_plain_linear(module) for module in modules):
        weights: list[Any] = [module.weight for module in modules]
        if saves_memory(p, weights):
            return _LinearOfSilu.apply(p, *weights)
    return run_checkpointed((_SILU, *modules), p)


class _LinearOfSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Tensor, *weights: Tensor) -> Tensor:
        ctx.autocast = autocast_of(p)
        ctx.save_for_backward(p, *weights)
        with same_autocast(ctx.autocast):
            return _products(p, weights)[-1]

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        p, *weights = ctx.saved_tensors
        to_weights: list[Tensor | None] = [None] * len(weights)
        with same_autocast(ctx.autocast):
            inputs = _products(p, weights[:-1])
            for i in reversed(range(len(weights))):
                if ctx.needs_input_grad[1 + i]:
                    product = _rows(gradient).t() @ _rows(inputs[i])
                    to_weights[i] = product.to(weights[i].dtype)
                gradient = gradient @ weights[i]
        to_p = None
        if ctx.needs_input_grad[0]:
            to_p = torch.ops.aten.silu_backward(gradient.to(p.dtype), p)
        return to_p, *to_weights


def _products(p: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """SiLU(P), W_1·SiLU(P), W_2·W_1·SiLU(P), ..."""
    x = [silu(p)]
    for weight in weights:
        x.append(linear(x[-1], weight))
    return x


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
