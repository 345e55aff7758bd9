"""The modulation in plain PyTorch: z_low ← z_low + z_low ⊙ (α·S), before or after RoPE (Eq. 4).

`z` (..., head_dim) is the query or key *before* rotation in both cases. A pair of its dimensions
is (a, b), the signal of the pair (s₁, s₂), and the rotation of the model, with cos and sin as it
uses them,

    R = | c  -s |        R⁻¹ = ____1____ |  c  s |
        | s   c |              c² + s²   | -s  c |

`pre` scales the pair in place. `post` must give R·z scaled after rotation, D·R·z with
D = diag(1+α·s₁, 1+α·s₂), while the rotation comes later, in the model's own code: so the pair
becomes R⁻¹·D·R·z. With D = 1 + α·diag(s₁, s₂) this is z + α·R⁻¹·diag(s₁, s₂)·R·z, and only the
small second term is rounded in low precision. R⁻¹ is not Rᵀ: YaRN scales cos and sin, and rounding
to float32 alone keeps c² + s² from being 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Slices, or lists of indices.
PairDimensions = tuple[slice, slice] | tuple[list[int], list[int]]


def bounded_signal(signal: Tensor, bound: float | None) -> Tensor:
    """b·tanh(S/b), within (-b, b) and S to first order; S itself without a bound."""
    return signal if bound is None else bound * torch.tanh(signal / bound)


def signals_of(
    p: Tensor, gqa: Callable[[Tensor], Tensor] | None, bound: float | None
) -> tuple[Tensor, Tensor]:
    """S_q = SiLU(P) and S_k = W_GQA(S_q), bounded; S_k is S_q without W_GQA."""
    for_queries = torch.nn.functional.silu(p)
    bounded = bounded_signal(for_queries, bound)
    return bounded, bounded if gqa is None else bounded_signal(gqa(for_queries), bound)


def modulate_pre_rotation(z: Tensor, signal: Tensor, alpha: float, pairs: PairDimensions) -> Tensor:
    """z with its low-frequency pairs scaled by 1 + α·S.

    Args:
        z: (..., head_dim), float of any precision.
        signal: (..., 2n) with the leading dimensions of z: n real, then n imaginary signals.
        alpha: α.
        pairs: the real and the imaginary dimensions of the n pairs (`rosa.rope.layout`).

    Returns a new tensor of z's shape and dtype; the product is formed in the wider of both dtypes.
    """
    real, imaginary = pairs
    for_real, for_imaginary = signal.chunk(2, dim=-1)
    return _add_to_pairs(
        z, alpha * for_real * z[..., real], alpha * for_imaginary * z[..., imaginary], pairs
    )


def modulate_post_rotation(
    z: Tensor, signal: Tensor, alpha: float, pairs: PairDimensions, cos: Tensor, sin: Tensor
) -> Tensor:
    """z such that rotating it gives the rotated z with its low pairs scaled by 1 + α·S.

    Args:
        z, signal, alpha, pairs: as for `modulate_pre_rotation`.
        cos, sin: (..., ρ), broadcastable to z's leading dimensions, as the model rotates with.

    Returns a new tensor of z's shape and dtype; the correction is formed in the widest dtype of
    z, signal and cos, and in float32 at least: c² + s² of half-precision cos and sin is 1 to two
    digits only when it is rounded too.
    """
    real, imaginary = pairs
    dtype = torch.promote_types(z.dtype, signal.dtype)
    c, s = widened(cos[..., real], dtype), widened(sin[..., real], dtype)
    dtype = c.dtype
    a, b = z[..., real].to(dtype), z[..., imaginary].to(dtype)
    for_real, for_imaginary = signal.to(dtype).chunk(2, dim=-1)
    rotated_real = for_real * (c * a - s * b)
    rotated_imaginary = for_imaginary * (s * a + c * b)
    scale = alpha / (c * c + s * s)
    return _add_to_pairs(
        z,
        scale * (c * rotated_real + s * rotated_imaginary),
        scale * (c * rotated_imaginary - s * rotated_real),
        pairs,
    )


def widened(turn: Tensor, dtype: torch.dtype) -> Tensor:
    """cos or sin in the widest of its own precision, `dtype` and float32."""
    wide = torch.promote_types(torch.promote_types(turn.dtype, dtype), torch.float32)
    return turn.to(wide)


def _add_to_pairs(
    z: Tensor, to_real: Tensor, to_imaginary: Tensor, pairs: PairDimensions
) -> Tensor:
    real, imaginary = pairs
    out = z.clone()
    out[..., real] += to_real.to(z.dtype)
    out[..., imaginary] += to_imaginary.to(z.dtype)
    return out
