"""The modulation of low-frequency dimensions (Eq. 4 of the paper) as pure functions."""

from __future__ import annotations

from rosa.ops.reference import modulate_post_rotation, modulate_pre_rotation

__all__ = ["modulate_post_rotation", "modulate_pre_rotation"]
