"""A chain of linear maps as one matrix, for inference: a copy beside the maps, which are saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rosa.ops.recompute import has_hooks


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


def fold(factors: Sequence[nn.Module]) -> Folded | None:
    """None where the factors are no plain linear maps, or two products are cheaper than one."""
    if len(factors) < 2 or _state(factors) is None:
        return None
    linear: Any = factors
    separate = sum(factor.weight.numel() for factor in linear)
    together = linear[-1].out_features * linear[0].in_features
    return Folded(linear) if together <= separate else None


def _state(factors: Sequence[nn.Module]) -> list[tuple[int, int, int]] | None:
    """Which weights the maps have, and how often each was written; None where that is not all that
    they do, or cannot be told."""
    state: list[tuple[int, int, int]] = []
    for factor in factors:
        weight = factor._parameters.get("weight")
        if (
            type(factor) is not nn.Linear
            or factor.bias is not None
            or weight is None
            or weight.is_meta
            or weight.is_inference()  # has no count of its changes
            or has_hooks(factor)
        ):
            return None
        state.append((id(weight), weight.data_ptr(), weight._version))
    return state
