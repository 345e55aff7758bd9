"""Where rotary position embeddings (RoPE) live in an architecture, and their low frequencies."""

from __future__ import annotations

from rosa.rope.families import KNOWN_MODEL_TYPES, has_rope, layout_of
from rosa.rope.layout import RopeLayout, Tap, low_pair_count, low_pair_slices

__all__ = [
    "KNOWN_MODEL_TYPES",
    "RopeLayout",
    "Tap",
    "has_rope",
    "layout_of",
    "low_pair_count",
    "low_pair_slices",
]
