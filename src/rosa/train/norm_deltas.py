"""δ of relative norms, exactly: an adapter's file has the norm itself, which rounds δ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from rosa.ops import RelativeNorm

STATE_FILE = "norm_deltas.safetensors"


def save_deltas(model: Any, folder: Path) -> None:
    """Writes δ of each trained norm; does nothing for a model without relative norms."""
    deltas = {name: norm.weight.detach() for name, norm in _relative_norms(model)}
    if deltas:
        save_file(deltas, folder / STATE_FILE)


def load_deltas(model: Any, folder: Path) -> None:
    """Restores what `save_deltas` wrote, if it did."""
    if (folder / STATE_FILE).is_file():
        deltas = load_file(folder / STATE_FILE)
        for name, norm in _relative_norms(model):
            norm.weight.data.copy_(deltas[name])


def _relative_norms(model: Any) -> list[tuple[str, RelativeNorm]]:
    modules = model.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, RelativeNorm)]
