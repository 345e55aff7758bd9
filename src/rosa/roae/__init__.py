"""RoAE, the RoPE-aware attention enhancement, as a PEFT tuner, registered when imported."""

from __future__ import annotations

from peft.utils import register_peft_method

from rosa.attention.load import check_adapter, load_adapter_checked
from rosa.attention.transformers_compat import watch_load_adapter
from rosa.roae.config import RosaConfig
from rosa.roae.layer import RosaLayer
from rosa.roae.model import RosaModel
from rosa.roae.projection import register_projection

register_peft_method(name="rosa", config_cls=RosaConfig, model_cls=RosaModel)
watch_load_adapter()

__all__ = [
    "RosaConfig",
    "RosaLayer",
    "RosaModel",
    "check_adapter",
    "load_adapter_checked",
    "register_projection",
]
