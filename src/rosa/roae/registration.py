"""Registers the adapter type "ROSA" with PEFT.

PEFT keeps its types in an enum, which Python does not let one extend: `_add_member` does by hand
what the enum's own construction does for each member. Everything else is PEFT's public
`register_peft_method`.
"""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.utils import PeftType, register_peft_method

NAME = "ROSA"


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


def register(config_class: type[PeftConfig], model_class: type[Any]) -> None:
    """Registers the classes of "ROSA": for PEFT's constructors and for saved adapters."""
    register_peft_method(name=NAME.lower(), config_cls=config_class, model_cls=model_class)


_add_member(PeftType, NAME)
ROSA = PeftType(NAME)
