"""The identity of a model in results: names, weights fingerprint, and its training data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from rosa.models.loading import Loaded, resolve_name

_SAMPLED_BYTES = 4 << 20  # a whole adapter or toy model; the ends of a large checkpoint


def identity(loaded: Loaded) -> dict[str, Any]:
    """Names, and a fingerprint of local weights."""
    source = loaded.adapter or loaded.base
    quantization = {"quantization": loaded.quantization} if loaded.quantization else {}
    return {
        "model": loaded.base,
        "adapter": loaded.adapter,
        "weights": weights_fingerprint(resolve_name(source)),
        **quantization,
    }


def weights_fingerprint(folder: str) -> str | None:
    """A hash over size and ends of every safetensors file of a local folder; None elsewhere."""
    if not Path(folder).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            digest.update(stream.read(_SAMPLED_BYTES))
            stream.seek(max(0, file.stat().st_size - _SAMPLED_BYTES))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def trained_on(name: str) -> list[str]:
    """The training data that the recipe next to a local adapter names; empty if there is none."""
    recipe = Path(name) / "recipe.yaml"
    if not recipe.is_file():
        return []
    try:
        data = (yaml.safe_load(recipe.read_text(encoding="utf-8")) or {}).get("data", [])
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return []  # another file of that name must not stop an evaluation
    return [str(d) for d in (data if isinstance(data, list) else [data])]
