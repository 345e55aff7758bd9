"""RoAE, the RoPE-aware attention enhancement, as a PEFT tuner, registered when imported."""

from __future__ import annotations

from rosa.roae.registration import register  # isort: skip  # PEFT must know the type "ROSA" first

from rosa.roae.config import RosaConfig
from rosa.roae.layer import RosaLayer
from rosa.roae.load import check_adapter, load_adapter_checked
from rosa.roae.model import RosaModel
from rosa.roae.projection import register_projection

register(RosaConfig, RosaModel)

__all__ = [
    "RosaConfig",
    "RosaLayer",
    "RosaModel",
    "check_adapter",
    "load_adapter_checked",
    "register_projection",
]
