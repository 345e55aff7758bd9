"""The table of notes/real_models.md: where the queries and keys of real models are strong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.pages import table
from docs.generators.blocks import read_json

MODELS = {"SmolLM2-135M": "inspect_smollm2.json", "Gemma-3-270M": "inspect_gemma3.json"}
QUARTERS = ("fastest quarter", "second", "third", "slowest")


def strength_table() -> str:
    """Per model and kind of attention: the share of energy in each quarter of the pairs."""
    heads = [
        "model",
        "layers",
        "of",
        *QUARTERS,
        "more than 25 % in the slowest",
        "strongest pair in it",
        "strongest pair",
        "turns once in",
    ]
    return table(heads, _rows())


def _rows() -> Iterator[list[str]]:
    for model, file in MODELS.items():
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for layer in read_json(file)["layers"]:  # Llama's say nothing: they see all tokens
            by_kind.setdefault(layer.get("attention", "full"), []).append(layer)
        for kind, found in by_kind.items():
            numbers = f"{len(found)}, {kind} attention"
            for what, name in (("query", "queries"), ("key", "keys")):
                energies = np.array([pair_energies(layer, what) for layer in found])
                shares = energies.reshape(len(found), 4, -1).sum(axis=2)
                cells = [f"{100 * share:.1f} %" for share in shares.mean(axis=0)]
                strongest, pairs = energies.argmax(axis=1), energies.shape[1]
                slow = (shares[:, -1] > 0.25, strongest >= 0.75 * pairs)
                counts = [f"{int(layers.sum())} of {len(found)}" for layers in slow]
                turn = [
                    layer["wavelengths"][pair] for layer, pair in zip(found, strongest, strict=True)
                ]
                medians = [f"{np.median(strongest):g} of {pairs}", f"{np.median(turn):,.0f} tokens"]
                yield [model, numbers, name, *cells, *counts, *medians]


def pair_energies(layer: dict[str, Any], what: str) -> np.ndarray:
    """For each pair, fastest first, its part of the energy Σ z² of all pairs and heads."""
    energy = (np.array(layer[what]["strength"]) ** 2).sum(axis=0)
    by_pair = np.bincount(layer["pair_of_dimension"], weights=energy)
    return by_pair / by_pair.sum()
