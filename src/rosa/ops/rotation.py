"""What the modulation needs of a rotation, made once per forward pass for all layers.

A pair (a, b) is the axis of size 2 of z (..., 2, n), as is its signal (s₁, s₂). With R, the turn of
a pair, and α the same for all of them, `modulate_post_rotation` adds

    α·R⁻¹·diag(s₁, s₂)·R·z  =  B·(S ⊙ A·z),      A = R,   B = α/(c² + s²)·Rᵀ

and `modulate_pre_rotation` the same with R = 1. From a gradient g to the sum, the gradient to z is
g + Aᵀ·(S ⊙ Bᵀ·g), and the one to S is A·z ⊙ Bᵀ·g.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rosa.ops.reference import PairSlices, widened

_FEW = 2048  # elements


class Turning(NamedTuple):
    """A and B of the low pairs; (b or 1, l, 1, 1, 1 or 2, n), float32 at least."""

    cos: Tensor  # c
    sin: Tensor  # (-s, s)
    back_cos: Tensor  # α·c/(c² + s²)
    back_sin: Tensor  # α·(s, -s)/(c² + s²)

    def there(self, z: Tensor) -> Tensor:
        """A·z, in the wider of both dtypes."""
        return (z * self.cos).addcmul_(_swapped(z), self.sin)

    def back_(self, x: Tensor) -> Tensor:
        """B·x in place of x, of a dtype that is not narrower."""
        swapped = _swapped(x)
        return x.mul_(self.back_cos).addcmul_(swapped, self.back_sin)

    def there_transposed_(self, x: Tensor) -> Tensor:
        """Aᵀ·x, likewise."""
        swapped = _swapped(x)
        return x.mul_(self.cos).addcmul_(swapped, self.sin, value=-1)

    def back_transposed(self, z: Tensor) -> Tensor:
        """Bᵀ·z, in the wider of both dtypes."""
        return (z * self.back_cos).addcmul_(_swapped(z), self.back_sin, value=-1)


def _swapped(z: Tensor) -> Tensor:
    """(b, a) of each pair (a, b). A roll copies rows, a flip single elements but with less ado."""
    return z.flip(-2) if z.numel() < _FEW else z.roll(1, -2)


def turning_of(
    cos: Tensor, sin: Tensor, pairs: PairSlices, alpha: float, dtype: torch.dtype
) -> Turning:
    """The turning of the `pairs` in cos and sin (b or 1, l, ρ), as the model rotates with them.

    Of the widest of `dtype`, which is that of the states, cos's own and float32.

    It is kept on `cos` itself, which all layers of a forward pass share: the next layers find it
    there, and it goes when `cos` goes.
    """
    inference = torch.is_inference_mode_enabled()  # what is made then, nobody can train with
    key = (_version(cos), _version(sin), inference, pairs, alpha, dtype)
    known = getattr(cos, "_rosa_turning", None)
    if known is None or known[0] is not sin or known[1] != key:
        known = sin, key, _turning(cos, sin, pairs, alpha, dtype)
        cos._rosa_turning = known  # type: ignore[attr-defined]
    return known[2]


def _version(turn: Tensor) -> int:
    """Grows when the tensor is written again, as a buffer may be, but not one of inference mode."""
    return 0 if turn.is_inference() else turn._version


def _turning(
    cos: Tensor, sin: Tensor, pairs: PairSlices, alpha: float, dtype: torch.dtype
) -> Turning:
    with torch.no_grad():
        # A copy: a view would keep cos alive, which keeps it.
        c, s = (
            widened(turn[..., None, None, None, pairs[0]], dtype).clone(
                memory_format=torch.contiguous_format
            )
            for turn in (cos, sin)
        )
        scale = alpha / (c * c + s * s)
        signed = torch.cat((-s, s), dim=-2)
        return Turning(c, signed, scale * c, -scale * signed)
