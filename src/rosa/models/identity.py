"""The identity of a model in results: names, weights fingerprint, and its training data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from rosa.models.loading import Loaded, is_hub_id, resolve_name, short_name

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


def is_same_model(one: str, other: str) -> bool:
    """Whether two names are the same hub id or folder.

    Of a hub id and a folder, and of a folder that is gone, the last parts of the names decide.
    """
    one, other = resolve_name(one), resolve_name(other)
    if is_hub_id(one) and is_hub_id(other):
        return one == other
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).samefile(other)
    return short_name(one) == short_name(other)


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
    """The data that a local adapter was trained on, by the recipe next to it; empty without one.

    That of the adapter which its run continued (`adapter_from`) comes first.
    """
    found: list[str] = []
    seen: list[str] = []
    while name and name not in seen:
        seen.append(name)
        recipe = recipe_beside(name)
        data = recipe.get("data") or []
        found = [str(d) for d in (data if isinstance(data, list) else [data])] + found
        name = str(recipe.get("adapter_from") or "")
    return found


def recipe_beside(name: str) -> dict[str, Any]:
    """The recipe in an adapter's folder; empty if there is none, or another file of that name."""
    try:
        return dict(yaml.safe_load((Path(name) / "recipe.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return {}
