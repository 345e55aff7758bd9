"""Adds the adapter types "ROSA" and "DYPAM" to PEFT's enum of types.

Python does not let one extend an enum: `_add_member` does by hand what the enum's own construction
does for each member.
"""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType


def _add_member(enum: Any, name: str) -> None:
    if name in enum.__members__:
        return
    member = str.__new__(enum, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(enum)
    member.__objclass__ = enum
    setattr(enum, name, member)  # before the maps: an enum refuses to reassign a known member
    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[name] = member
    getattr(enum, "_hashable_values_", []).append(name)  # Python 3.13: `"ROSA" in PeftType`


for name in ("ROSA", "DYPAM"):
    _add_member(PeftType, name)
ROSA, DYPAM = PeftType("ROSA"), PeftType("DYPAM")
