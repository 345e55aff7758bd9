"""Which of a head's rotated pairs an adapter modulates."""

from __future__ import annotations

import random
from collections.abc import Sequence

from rosa.roae.config import RosaConfig
from rosa.rope import RopeLayout, low_pair_count


def adapted_pairs(layout: RopeLayout, config: RosaConfig, layer: int) -> Sequence[int]:
    """The pairs of a head that a `RosaConfig` adapts in a layer: a range, or a list if at random.

    Of ρ/2 pairs, the fastest being 0, those are for `config.pairs`, with n = ⌊ρ·r_low/2⌋,

        low     the last n           high  the first n
        random  n, drawn per layer   all   every pair
    """
    total = layout.rotary_dim // 2
    if config.pairs == "all":
        return range(total)
    n = low_pair_count(layout.head_dim, layout.rotary_dim, config.r_low)
    if config.pairs == "random":
        # `random()` alone has a sequence that Python promises to keep.
        draw = random.Random(f"rosa-pairs/{config.pairs_seed}/{layer}").random
        return sorted(sorted(range(total), key=lambda _: draw())[:n])
    return range(n) if config.pairs == "high" else range(total - n, total)
