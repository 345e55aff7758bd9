"""`AttentionTunerConfig`, the options of every tuner of attention modules."""

# ruff: noqa: RUF009  # option makes dataclass fields
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from rosa.errors import RosaError


def option(default: Any, description: str) -> Any:
    """A dataclass field with a description, which docs and `--help` print."""
    return field(default=default, metadata={"help": description})


@dataclass
class AttentionTunerConfig(PeftConfig):
    """Which attention modules are adapted, and how the adapter starts."""

    target_modules: list[str] | str | None = option(
        None, "Names (or one regex) of attention modules; None adapts all."
    )
    layers_to_transform: list[int] | int | None = option(
        None, "Indices of the layers to adapt; None adapts all."
    )
    exclude_modules: list[str] | str | None = option(
        None, "Names (or one regex) of modules not to adapt."
    )
    modules_to_save: list[str] | None = option(None, "Further modules to train in full and save.")
    init_weights: bool = option(
        True, "True: starts as the base model, bit for bit; False: at random."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.layers_to_transform, (tuple, range)):
            self.layers_to_transform = list(self.layers_to_transform)
        self._validate()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]

    def _validate(self) -> None:
        if isinstance(self.modules_to_save, str):
            raise RosaError(
                f"modules_to_save must be a list of names, not {self.modules_to_save!r}"
            )
        self._check_bool("init_weights")
        self._validate_layers()

    def _check_bool(self, name: str) -> None:
        if not isinstance(getattr(self, name), bool):
            raise RosaError(f"{name} must be True or False, not {getattr(self, name)!r}")

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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
