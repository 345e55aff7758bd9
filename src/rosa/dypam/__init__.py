"""DyPAM, the dynamic positional attention modulation, as a PEFT tuner, registered when imported."""

from __future__ import annotations

from peft.utils import register_peft_method

from rosa.dypam.config import DypamConfig
from rosa.dypam.layer import DypamLayer
from rosa.dypam.model import DypamModel

register_peft_method(name="dypam", config_cls=DypamConfig, model_cls=DypamModel)

__all__ = ["DypamConfig", "DypamLayer", "DypamModel"]
