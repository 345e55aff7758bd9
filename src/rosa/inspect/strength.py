"""Activation strength: rotation, sums over tokens, shares of energy. Pure functions.

The strength of a dimension is the root mean square over tokens of the state that attention sees,
after rotation: the L2 norm over tokens of the paper's Figure 1, divided by the square root of their
number, so that texts of any length compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rosa.rope import PairDimensions, RopeLayout, low_pair_count

Array = NDArray[np.float64]


def rotate(z: Tensor, cos: Tensor, sin: Tensor, layout: RopeLayout) -> Tensor:
    """Queries or keys as attention sees them.

    Args:
        z: (b, l, heads, head_dim) before rotation.
        cos, sin: (b or 1, l, ρ), as the model rotates with.

    Returns float32 (float64 for float64) of z's shape; dimensions beyond ρ as they are.
    """
    dtype = torch.promote_types(z.dtype, torch.float32)
    out = z.to(dtype, copy=True)
    real, imaginary = _all_pairs(layout)
    a, b = z[..., real].to(dtype), z[..., imaginary].to(dtype)
    cos, sin = (turn.to(dtype).unsqueeze(-2) for turn in (cos, sin))
    # Both dimensions of a pair have their own entry; with the model's rounding they are equal.
    out[..., real] = a * cos[..., real] - b * sin[..., real]
    out[..., imaginary] = b * cos[..., imaginary] + a * sin[..., imaginary]
    return out


def sum_of_squares(z: Tensor, real_tokens: Tensor) -> Array:
    """Σ z² over the tokens that are real, (heads, width).

    Args:
        z: (b, l, heads, width).
        real_tokens: (b, at most l) of 0 and 1. z is longer where a prompt-learning adapter has
            prepended virtual tokens, which do not count.
    """
    missing = z.shape[1] - real_tokens.shape[1]
    mask = torch.nn.functional.pad(real_tokens, (missing, 0)).bool().to(z.device)
    return z[mask].square().sum(0).cpu().double().numpy()


def pair_frequencies(cos: Tensor, sin: Tensor, layout: RopeLayout) -> Array:
    """Radians per token of each pair, (ρ/2,): the turn between the first two positions.

    Without sign, as one architecture turns the other way. Read off the rotation itself, so that
    every scaling (YaRN, Llama 3, one base per layer type) is in it. cos, sin: (b or 1, l >= 2, ρ).
    """
    real, _ = _all_pairs(layout)
    (c0, c1), (s0, s1) = (turn[0, :2, real].cpu().double() for turn in (cos, sin))
    return torch.atan2(s1 * c0 - c1 * s0, c1 * c0 + s1 * s0).abs().numpy()


def low_dimensions(layout: RopeLayout, r_low: float) -> list[int]:
    """The dimensions of a head that RoAE with this r_low modulates, ascending.

    Raises RosaError where r_low selects none.
    """
    total = layout.rotary_dim // 2
    count = low_pair_count(layout.head_dim, layout.rotary_dim, r_low)
    return dimensions_of(layout.dimensions(range(total - count, total)), layout)


def dimensions_of(pairs: PairDimensions, layout: RopeLayout) -> list[int]:
    """The dimensions of these pairs of a head, ascending."""
    every = np.arange(layout.head_dim)
    return sorted(int(i) for half in pairs for i in every[half])


def pair_of_dimension(layout: RopeLayout) -> list[int | None]:
    """For each dimension of a head the index of its pair, None where it is not rotated."""
    found: list[int | None] = [None] * layout.head_dim
    for half in _all_pairs(layout):
        for pair, dimension in enumerate(np.arange(layout.head_dim)[half]):
            found[dimension] = pair
    return found


def energy_share(strength: Array, dimensions: list[int]) -> float:
    """The share (0 to 1) of the energy Σ z² of all heads that lies in `dimensions`.

    strength: (heads, head_dim), root mean squares. nan where there is no energy at all.
    """
    energy = strength**2
    total = energy.sum()
    return float(energy[:, dimensions].sum() / total) if total else float("nan")


def over_heads(strength: Array) -> Array:
    """Root mean square over heads and tokens, (head_dim,), of strengths (heads, head_dim)."""
    return np.sqrt((strength**2).mean(0))


def stack_rows(rows: Sequence[Array]) -> Array:
    """Rows of any length as one array, nan where a row is shorter."""
    out = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def _all_pairs(layout: RopeLayout) -> PairDimensions:
    return layout.dimensions(range(layout.rotary_dim // 2))
