"""A chain of linear maps as one matrix, for inference: a copy beside the maps, which are saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Folded:
    """The product of linear maps, valid as long as their weights are what they were."""

    def __init__(self, factors: Sequence[nn.Linear]) -> None:
        self._weights = [factor.weight for factor in factors]  # holds on to them, and their ids
        self._state = _state(factors)
        with torch.no_grad():
            wide = [
                weight.to(torch.promote_types(weight.dtype, torch.float32))
                for weight in self._weights
            ]
            product = wide[0]
            for weight in wide[1:]:
                product = weight @ product
            self.matrix = product.to(self._weights[0].dtype)

    def __call__(self, factors: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """What the factors map x to; None where they, or their weights, are others than before."""
        if self._state != _state(factors):
            return None
        return nn.functional.linear(x, self.matrix)


def _state(factors: Sequence[nn.Module]) -> list[tuple[int, int, int]]:
    weights: list[Any] = [factor._parameters["weight"] for factor in factors]
    return [(id(w), w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]


def fold(factors: Sequence[nn.Module]) -> Folded | None:
    """None where the factors are no plain linear maps, or two products are cheaper than one."""
    linear = [factor for factor in factors if isinstance(factor, nn.Linear) and _is_plain(factor)]
    if len(linear) < max(2, len(factors)):
        return None
    separate = sum(factor.weight.numel() for factor in linear)
    together = linear[-1].out_features * linear[0].in_features
    return Folded(linear) if together <= separate else None


def _is_plain(factor: nn.Linear) -> bool:
    as_pytorch = type(factor) is nn.Linear and not factor._forward_hooks
    return as_pytorch and factor.bias is None and not factor.weight.is_meta
