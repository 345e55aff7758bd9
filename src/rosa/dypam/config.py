"""`DypamConfig`, the configuration of a DyPAM adapter, saved by PEFT as `adapter_config.json`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rosa.attention.config import AttentionTunerConfig, option
from rosa.attention.registration import DYPAM
from rosa.errors import check_number


@dataclass
class DypamConfig(AttentionTunerConfig):
    """Configuration of a DyPAM adapter (doi 10.1145/3770855.3817911); the defaults are the paper's.

    `rosa.dypam.layer.DypamLayer` has the equations, and what the paper leaves open.

    Raises `RosaError` for a value out of range.
    """

    r: int = option(128, "Rank of the projection A·B that makes the features.")
    feature_dim: int = option(64, "Features per query head, d_e.")
    alpha: float = option(
        0.3, "Strength α of the modulation: the factor is between 1 - α/2 and 1 + α/2."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DYPAM

    def _validate(self) -> None:
        for name in ("r", "feature_dim"):
            value = getattr(self, name)
            check_number(name, value, lambda v: v >= 1, "a whole number of at least 1", int)
        check_number("alpha", self.alpha, math.isfinite, "a finite number")
        super()._validate()
