"""A chain of linear layers as one matrix for inference; the layers stay, and are what is saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rosa.ops.recompute import is_plain_linear


class FoldedLinear:
    """The product of linear layers, valid as long as they and their weights stay the same."""

    def __init__(self, factors: Sequence[nn.Linear]) -> None:
        self._known = [(f.weight, f.weight.data_ptr(), f.weight._version) for f in factors]
        with torch.no_grad():
            product, *others = (
                factor.weight.to(torch.promote_types(factor.weight.dtype, torch.float32))
                for factor in factors
            )
            for weight in others:
                product = weight @ product
            self.matrix = product.to(factors[0].weight.dtype)

    def __call__(self, factors: Sequence[nn.Module], x: Tensor) -> Tensor | None:
        """x (..., in) through the factors; None where they or their weights have changed."""
        for factor, (weight, address, version) in zip(factors, self._known, strict=True):
            if not (
                factor._parameters.get("weight") is weight
                and is_plain_linear(factor)
                and weight.data_ptr() == address
                and weight._version == version
            ):
                return None
        return nn.functional.linear(x, self.matrix)


def fold(factors: Sequence[nn.Module]) -> FoldedLinear | None:
    """None where the factors are no plain linear layers, or two products are cheaper than one."""
    if len(factors) < 2 or not all(is_plain_linear(factor) for factor in factors):
        return None
    linear: Any = factors
    if any(f.weight.is_meta or f.weight.is_inference() for f in linear):  # nor counts its changes
        return None
    separate = sum(factor.weight.numel() for factor in linear)
    together = linear[-1].out_features * linear[0].in_features
    return FoldedLinear(linear) if together <= separate else None
