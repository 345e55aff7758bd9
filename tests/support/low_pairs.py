"""The low-frequency pairs of a head, for tests without a model."""

from __future__ import annotations

from rosa.rope import PairDimensions
from rosa.rope.layout import Pairing, pair_dimensions


def low_pair_slices(
    rotary_dim: int, pairing: Pairing, pairs: int, span: int | None = None
) -> PairDimensions:
    """The (real, imaginary) dimensions of the last `pairs` pairs of a head, as slices."""
    total = rotary_dim // 2
    return pair_dimensions(rotary_dim, pairing, range(total - pairs, total), span)
