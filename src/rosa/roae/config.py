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
from rosa.errors import RosaError, check_choice, check_number
from rosa.roae.projection import check_projection_name


@dataclass
class RosaConfig(AttentionTunerConfig):
    """Configuration of a RoSA adapter; the defaults are the paper's.

    Raises `RosaError` for a value out of range.
    """

    r: int = option(128, "Rank of the projection W_proj and of W_GQA.")
    projection: str = option(
        "low_rank",
        "Parametrization of W_proj: 'low_rank' (the paper's, of rank r), 'full' (one matrix), "
        "'constant' (a control: a trained vector, whatever the input) or a name "
        "given to rosa.register_projection.",
    )
    alpha: float = option(0.1, "Strength α of the modulation (Eq. 4).")
    r_low: float = option(
        0.25, "Share of the rotated dimensions that is adapted, lowest frequency first."
    )
    pairs: Literal["low", "high", "random", "all"] = option(
        "low",
        "Which of the ρ/2 rotated pairs are adapted: 'low' the n = ⌊ρ·r_low/2⌋ of the lowest "
        "frequency, as in the paper; as controls, 'high' the n of the highest, 'random' n drawn "
        "for each layer, 'all' every pair, whatever r_low is (lower r for the same budget).",
    )
    pairs_seed: int = option(0, "Seed of pairs='random'.")
    bound: float | None = option(
        None,
        "Keeps the signals S_q and S_k within (-bound, bound), as bound·tanh(S/bound); None does "
        "not, as in the paper.",
    )
    rope_stage: Literal["post", "pre"] = option(
        "post",
        "'post' modulates queries and keys after RoPE, as in the paper; 'pre' before it, so that "
        "attention depends on relative positions alone.",
    )
    train_norms: bool = option(True, "Also train the norms of each adapted decoder layer.")
    norm_parametrization: Literal["absolute", "relative"] = option(
        "absolute",
        "What is trained of a norm: 'absolute' its scale w itself, as in the paper; 'relative' δ "
        "of the scale w₀ ⊙ (1 + δ), or (1 + w₀) ⊙ (1 + δ) with Gemma's norms, so that a step is a "
        "share of any scale. Biases are trained as they are; the norm itself is saved.",
    )
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
        check_choice("rope_stage", self.rope_stage, ("post", "pre"))
        check_choice("norm_parametrization", self.norm_parametrization, ("absolute", "relative"))
        check_choice("pairs", self.pairs, ("low", "high", "random", "all"))
        check_number("pairs_seed", self.pairs_seed, lambda v: v >= 0, "a whole number from 0", int)
        if self.bound is not None:
            check_number("bound", self.bound, lambda v: 0 < v < math.inf, "above 0, or None")
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
