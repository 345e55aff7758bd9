"""`DypamModel`, the PEFT tuner that wraps attention modules with `DypamLayer`."""

from __future__ import annotations

from rosa.attention.model import AttentionTuner
from rosa.dypam.config import DypamConfig
from rosa.dypam.layer import DypamLayer


class DypamModel(AttentionTuner):
    """A model with DyPAM on its attention modules (`get_peft_model(model, DypamConfig(...))`)."""

    prefix: str = DypamLayer.prefix
    tuner_layer_cls = DypamLayer
    config_cls = DypamConfig
