"""`RosaConfig`, the configuration of a RoSA adapter, saved by PEFT as `adapter_config.json`."""

# ruff: noqa: RUF009  # option makes dataclass fields
from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

from rosa.attention.config import AttentionTunerConfig, option
from rosa.attention.registration import ROSA
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError, check_number
from rosa.roae.projection import check_projection_name


@dataclass
class RosaConfig(AttentionTunerConfig):
    """Configuration of a RoSA adapter; the defaults are the paper's.

    Raises `RosaError` for a value out of range.
    """

    r: int = option(128, "Rank of the projection W_proj and of W_GQA.")
    projection: str = option(
        "low_rank",
        "Parametrization of W_proj: 'low_rank' (the paper's, of rank r), 'full' (one matrix) or a "
        "name given to rosa.register_projection.",
    )
    alpha: float = option(0.1, "Strength α of the modulation (Eq. 4).")
    r_low: float = option(
        0.25, "Share of the rotated dimensions that is adapted, lowest frequency first."
    )
    rope_stage: Literal["post", "pre"] = option(
        "post",
        "'post' modulates queries and keys after RoPE, as in the paper; 'pre' before it, so that "
        "attention depends on relative positions alone.",
    )
    train_norms: bool = option(True, "Also train the norms of each adapted decoder layer.")
    dls: DlsConfig | None = option(
        None,
        "Dynamic layer selection to train this adapter with, which is run by "
        "rosa.DynamicLayerSelection or rosa.DlsCallback.",
    )

    def __post_init__(self) -> None:
        from_file = self.peft_version is not None  # PEFT writes it into every adapter file
        if isinstance(self.dls, dict):
            self.dls = _read_dls(self.dls, from_file)
        super().__post_init__()
        self.peft_type = ROSA

    def _validate(self) -> None:
        check_number("r", self.r, lambda v: v >= 1, "a whole number of at least 1", int)
        check_projection_name(self.projection)
        check_number("alpha", self.alpha, math.isfinite, "a finite number")
        check_number("r_low", self.r_low, lambda v: 0 < v <= 1, "above 0 and at most 1")
        if self.rope_stage not in ("post", "pre"):
            raise RosaError(f"rope_stage must be 'post' or 'pre', not {self.rope_stage!r}")
        if self.dls is not None and not dataclasses.is_dataclass(self.dls):
            raise RosaError(f"dls must be a rosa.DlsConfig or None, not {self.dls!r}")
        self._check_bool("train_norms")
        super()._validate()


def _read_dls(saved: dict[str, Any], from_file: bool) -> DlsConfig:
    """The `DlsConfig` of these keys; those of an adapter file may be a later version's."""
    known = {field.name for field in dataclasses.fields(DlsConfig)}
    unknown = sorted(set(saved) - known)
    if unknown and from_file:
        warnings.warn(f"ignoring unknown fields of dls: {', '.join(unknown)}", stacklevel=4)
        saved = {name: value for name, value in saved.items() if name in known}
    return DlsConfig.of(saved)
