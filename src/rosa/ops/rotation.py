"""The rotation of the low-frequency pairs, made once per forward pass for all layers.

A pair (a, b) is the axis of size 2 of z (..., 2, n), as is its signal (s₁, s₂). With R the rotation
of a pair and α·S its signal, `modulate_post_rotation` adds

    α·R⁻¹·diag(s₁, s₂)·R·z  =  B·(S ⊙ A·z),      A = R,   B = α/(c² + s²)·Rᵀ

and `modulate_pre_rotation` the same with R = 1. From a gradient g to the sum, the gradient to z is
g + Aᵀ·(S ⊙ Bᵀ·g), and the one to S is A·z ⊙ Bᵀ·g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rosa.ops.reference import PairDimensions, widened

_FEW = 2048  # elements


class PairRotation(NamedTuple):
    """A and B of n pairs: tensors (b or 1, l, 1, 1, 1 or 2, n), float32 or wider."""

    cos: Tensor  # c
    sin: Tensor  # (-s, s)
    inverse_cos: Tensor  # α·c/(c² + s²)
    inverse_sin: Tensor  # α·(s, -s)/(c² + s²)

    def rotate(self, z: Tensor) -> Tensor:
        """A·z, in the wider of both dtypes."""
        return (z * self.cos).addcmul_(_swapped(z), self.sin)

    def unrotate_(self, x: Tensor) -> Tensor:
        """B·x in place of x, whose dtype is not narrower."""
        swapped = _swapped(x)
        return x.mul_(self.inverse_cos).addcmul_(swapped, self.inverse_sin)

    def rotate_transposed_(self, x: Tensor) -> Tensor:
        """Aᵀ·x in place of x, whose dtype is not narrower."""
        swapped = _swapped(x)
        return x.mul_(self.cos).addcmul_(swapped, self.sin, value=-1)

    def unrotate_transposed(self, z: Tensor) -> Tensor:
        """Bᵀ·z, in the wider of both dtypes."""
        return (z * self.inverse_cos).addcmul_(_swapped(z), self.inverse_sin, value=-1)


def _swapped(z: Tensor) -> Tensor:
    """(b, a) of each pair (a, b). A roll copies rows; a flip is faster for few elements."""
    return z.flip(-2) if z.numel() < _FEW else z.roll(1, -2)


def pair_rotation(
    cos: Tensor, sin: Tensor, pairs: PairDimensions, alpha: float, dtype: torch.dtype
) -> PairRotation:
    """The rotation of `pairs` by cos and sin (b or 1, l, ρ), in the widest of float32, cos's dtype
    and `dtype`, which is that of the queries and keys.

    It is cached on `cos` itself, which all layers of a forward pass share, and freed with it.
    """
    inference = torch.is_inference_mode_enabled()  # its tensors cannot be trained with
    key = (_version(cos), _version(sin), inference, pairs, alpha, dtype)
    cached = getattr(cos, "_rosa_pair_rotation", None)
    if cached is None or cached[0] is not sin or cached[1] != key:
        cached = sin, key, _pair_rotation(cos, sin, pairs, alpha, dtype)
        cos._rosa_pair_rotation = cached  # type: ignore[attr-defined]
    return cached[2]


def _version(turn: Tensor) -> int:
    """Grows when the tensor is written again, as a buffer may be, but not one of inference mode."""
    return 0 if turn.is_inference() else turn._version


@torch.no_grad()
def _pair_rotation(
    cos: Tensor, sin: Tensor, pairs: PairDimensions, alpha: float, dtype: torch.dtype
) -> PairRotation:
    # Copies: a view would keep cos alive, and cos keeps it.
    c, s = (
        widened(turn[..., None, None, None, pairs[0]], dtype).clone(
            memory_format=torch.contiguous_format
        )
        for turn in (cos, sin)
    )
    scale = alpha / (c * c + s * s)
    signed = torch.cat((-s, s), dim=-2)
    return PairRotation(c, signed, scale * c, -scale * signed)
