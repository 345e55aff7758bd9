"""`RosaConfig`, the configuration of a RoSA adapter, saved by PEFT as `adapter_config.json`."""

# ruff: noqa: RUF009  # _field makes dataclass fields
from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from rosa.dls.config import DlsConfig
from rosa.errors import RosaError, check_number
from rosa.roae.projection import check_projection_name
from rosa.roae.registration import ROSA


def _field(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass
class RosaConfig(PeftConfig):
    """Configuration of a RoSA adapter; the defaults are the paper's.

    Raises `RosaError` for a value out of range.
    """

    r: int = _field(128, "Rank of the projection W_proj and of W_GQA.")
    projection: str = _field(
        "low_rank",
        "Parametrization of W_proj: 'low_rank' (the paper's, of rank r), 'full' (one matrix) or a "
        "name given to rosa.register_projection.",
    )
    alpha: float = _field(0.1, "Strength α of the modulation (Eq. 4).")
    r_low: float = _field(
        0.25, "Share of the rotated dimensions that is adapted, lowest frequency first."
    )
    rope_stage: Literal["post", "pre"] = _field(
        "post",
        "'post' modulates queries and keys after RoPE, as in the paper; 'pre' before it, so that "
        "attention depends on relative positions alone.",
    )
    train_norms: bool = _field(True, "Also train the norms of each adapted decoder layer.")
    target_modules: list[str] | str | None = _field(
        None, "Names (or one regex) of attention modules; None adapts all."
    )
    layers_to_transform: list[int] | int | None = _field(
        None, "Indices of the layers to adapt; None adapts all."
    )
    exclude_modules: list[str] | str | None = _field(
        None, "Names (or one regex) of modules not to adapt."
    )
    modules_to_save: list[str] | None = _field(None, "Further modules to train in full and save.")
    init_weights: bool = _field(
        True, "True: starts as the base model, bit for bit; False: at random."
    )
    dls: DlsConfig | None = _field(
        None,
        "Dynamic layer selection to train this adapter with, which is run by "
        "rosa.DynamicLayerSelection or rosa.DlsCallback.",
    )

    def __post_init__(self) -> None:
        from_file = self.peft_version is not None  # PEFT writes it into every adapter file
        super().__post_init__()
        self.peft_type = ROSA
        if isinstance(self.dls, dict):
            self.dls = _read_dls(self.dls, from_file)
        if isinstance(self.layers_to_transform, (tuple, range)):
            self.layers_to_transform = list(self.layers_to_transform)
        self._validate()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]

    def _validate(self) -> None:
        check_number("r", self.r, lambda v: v >= 1, "a whole number of at least 1", int)
        check_projection_name(self.projection)
        check_number("alpha", self.alpha, math.isfinite, "a finite number")
        check_number("r_low", self.r_low, lambda v: 0 < v <= 1, "above 0 and at most 1")
        if self.rope_stage not in ("post", "pre"):
            raise RosaError(f"rope_stage must be 'post' or 'pre', not {self.rope_stage!r}")
        if self.dls is not None and not dataclasses.is_dataclass(self.dls):
            raise RosaError(f"dls must be a rosa.DlsConfig or None, not {self.dls!r}")
        if isinstance(self.modules_to_save, str):
            raise RosaError(
                f"modules_to_save must be a list of names, not {self.modules_to_save!r}"
            )
        for name in ("train_norms", "init_weights"):
            if not isinstance(getattr(self, name), bool):
                raise RosaError(f"{name} must be True or False, not {getattr(self, name)!r}")
        self._validate_layers()

    def _validate_layers(self) -> None:
        layers = self.layers_to_transform
        if layers is None:
            return
        indices = layers if isinstance(layers, list) else [layers]
        if not indices or not all(_is_int(index) and index >= 0 for index in indices):
            raise RosaError(
                f"layers_to_transform must hold layer indices of at least 0, not {layers!r}; "
                "leave it out to adapt every layer"
            )
        if isinstance(self.target_modules, str):
            raise RosaError(
                "layers_to_transform cannot be combined with a regex in target_modules; "
                "name the layers in the regex"
            )


def _read_dls(saved: dict[str, Any], from_file: bool) -> DlsConfig:
    """The `DlsConfig` of these keys; those of an adapter file may be a later version's."""
    known = {field.name for field in dataclasses.fields(DlsConfig)}
    unknown = sorted(set(saved) - known)
    if unknown and from_file:
        warnings.warn(f"ignoring unknown fields of dls: {', '.join(unknown)}", stacklevel=4)
        saved = {name: value for name, value in saved.items() if name in known}
    return DlsConfig.of(saved)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
