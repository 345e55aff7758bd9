"""Rotary position embeddings (RoPE) of any architecture, and their low frequencies."""

from __future__ import annotations

from rosa.rope.detect import detect_unknown, layout_of
from rosa.rope.families import KNOWN_MODEL_TYPES, has_rope
from rosa.rope.layout import (
    CosSinSource,
    HookPoint,
    PairDimensions,
    RopeLayout,
    low_pair_count,
)

__all__ = [
    "KNOWN_MODEL_TYPES",
    "CosSinSource",
    "HookPoint",
    "PairDimensions",
    "RopeLayout",
    "detect_unknown",
    "has_rope",
    "layout_of",
    "low_pair_count",
]
