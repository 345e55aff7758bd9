"""Where rotary position embeddings (RoPE) live in an architecture, and their low frequencies."""

from __future__ import annotations

from rosa.rope.detect import layout_of, measure_unknown
from rosa.rope.families import KNOWN_MODEL_TYPES, has_rope
from rosa.rope.layout import RopeLayout, Tap, Turns, low_pair_count, low_pair_slices

__all__ = [
    "KNOWN_MODEL_TYPES",
    "RopeLayout",
    "Tap",
    "Turns",
    "has_rope",
    "layout_of",
    "low_pair_count",
    "low_pair_slices",
    "measure_unknown",
]
