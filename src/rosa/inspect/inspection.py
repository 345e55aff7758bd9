"""`inspect_model`: everything that was measured on one model, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rosa.common.formatting import format_indices
from rosa.errors import RosaError
from rosa.inspect.adapter_effect import (
    LayerEffect,
    norm_gains,
    relative_change,
    watch_signals,
)
from rosa.inspect.capture import LayerStates, run, watch_states
from rosa.inspect.strength import Array, energy_share, low_dimensions, over_heads
from rosa.inspect.texts import Texts, as_texts, read_texts
from rosa.models import loading as models

Kind = Literal["query", "key"]
R_LOW = 0.25  # the paper's
KINDS: tuple[Kind, Kind] = ("query", "key")


@dataclass(frozen=True)
class Inspection:
    """What one model, with or without an adapter, looks like inside.

    Attributes:
        model: the model or adapter as it was named.
        base: the base model's name.
        method: the adapter's PEFT type ("ROSA", "LORA", ...), None for a base model.
        texts: what it was run on.
        r_low: which share of the pairs counts as low-frequency.
        low: for each layer the low-frequency dimensions of a head.
        states: per layer, of the model as it was named (with its adapter).
        base_states: the same without the adapter; None for a base model.
        effects: what RoAE does, per adapted layer; empty without a RoSA adapter.
        norm_changes: per layer, the relative change of each norm's scale; empty without an adapter.
    """

    model: str
    base: str
    method: str | None
    texts: Texts
    r_low: float
    low: list[list[int]]
    states: list[LayerStates]
    base_states: list[LayerStates] | None = None
    effects: list[LayerEffect] = field(default_factory=list)
    norm_changes: list[dict[str, float]] = field(default_factory=list)

    @property
    def layers(self) -> list[int]:
        """The indices of the layers that rotate."""
        return [layer.index for layer in self.states]

    def position(self, layer: int | None) -> int:
        """Where a layer is in the lists; the middle one for None.

        Raises RosaError for a layer that the model does not have.
        """
        return _position(self.layers, layer, self.model)

    def by_layer(self, kind: Kind, *, base: bool = False) -> Array:
        """Strength (layers, head_dim), root mean square over heads; nan where heads are smaller."""
        states = self.base_states if base else self.states
        rows = [over_heads(getattr(layer, kind)) for layer in states or []]
        out = np.full((len(rows), max(map(len, rows))), np.nan)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out

    def low_shares(self, at: int, *, base: bool = False) -> tuple[float, float]:
        """Of the queries' and of the keys' energy in a layer, the low-frequency dimensions' share.

        `at` is a position in the lists, not a layer's index.
        """
        states = (self.base_states or []) if base else self.states
        query, key = (energy_share(getattr(states[at], kind), self.low[at]) for kind in KINDS)
        return query, key

    def shares(self, kind: Kind, *, base: bool = False) -> list[float]:
        """`low_shares` of all layers."""
        which = KINDS.index(kind)
        return [self.low_shares(at, base=base)[which] for at in range(len(self.low))]

    def expected_shares(self) -> list[float]:
        """For each layer the low-frequency dimensions' share of the dimensions."""
        pairs = zip(self.states, self.low, strict=True)
        return [len(low) / layer.layout.head_dim for layer, low in pairs]


def check_layer(model: models.Loaded, layer: int | None) -> None:
    """Raises RosaError where `model` has no such layer to look at, before anything is measured."""
    _position([w.index for w in watch_states(model.model)], layer, model.name)


def inspect_model(
    model: models.Loaded | str,
    texts: Texts | Iterable[str] | None = None,
    *,
    r_low: float | None = None,
    limit: int | None = 64,
    max_length: int = 512,
    batch_size: int = 8,
    dtype: str = "auto",
    device: str = "auto",
) -> Inspection:
    """Runs a model over texts and measures its queries and keys after rotation.

    Args:
        model: a model or an adapter, loaded or by name. With an adapter the base model is
            measured too.
        texts: the texts; None takes the toy questions that come with the package.
        r_low: the share of the pairs that counts as low-frequency; None takes that of the RoSA
            adapter, or the paper's 0.25 where there is none or it modulates all pairs.
        limit, max_length: how many texts, of how many tokens, where `texts` is not read yet.
        batch_size: texts at a time.
        dtype, device: where `model` is a name.

    Raises:
        RosaError: the model cannot be loaded or inspected, or there is no text.
    """
    if isinstance(model, str):
        model = models.load(model, dtype=dtype, device=device)
    network = model.model
    watched = watch_states(network)  # refuses an architecture that is not known
    if r_low is None:
        r_low = _own_r_low(network) if model.adapter else R_LOW
    low = [low_dimensions(watcher.layout, r_low) for watcher in watched]
    if texts is None:
        texts = read_texts(model.tokenizer, limit=limit, max_length=max_length)
    elif not isinstance(texts, Texts):
        texts = as_texts(model.tokenizer, texts, max_length=max_length)
    states, effects = _measure(network, texts, batch_size)
    base_states, changes = None, []
    if model.adapter:
        after = norm_gains(network)
        with network.disable_adapter():
            base_states, _ = _measure(network, texts, batch_size)
            changes = _norm_changes(norm_gains(network), after)
    return Inspection(
        model=model.name,
        base=model.base,
        method=_method(network) if model.adapter else None,
        texts=texts,
        r_low=r_low,
        low=low,
        states=states,
        base_states=base_states,
        effects=effects,
        norm_changes=changes,
    )


def _measure(
    model: Any, texts: Texts, batch_size: int
) -> tuple[list[LayerStates], list[LayerEffect]]:
    states, signals = watch_states(model), watch_signals(model)
    tokens = run(model, texts.sequences, [*states, *signals], batch_size)
    return [w.states(tokens) for w in states], [w.effect(tokens) for w in signals]


def _norm_changes(
    before: list[dict[str, Array]], after: list[dict[str, Array]]
) -> list[dict[str, float]]:
    return [
        {name: relative_change(old[name], new[name]) for name in old}
        for old, new in zip(before, after, strict=True)
    ]


def _method(model: Any) -> str:
    kind = model.peft_config[model.active_adapter].peft_type
    return str(getattr(kind, "value", kind))


def _own_r_low(model: Any) -> float:
    own = float(getattr(model.peft_config[model.active_adapter], "r_low", R_LOW))
    return own if own < 1 else R_LOW


def _position(layers: list[int], layer: int | None, model: str) -> int:
    if layer is None:
        return len(layers) // 2
    if layer not in layers:
        raise RosaError(
            f"{models.short_name(model)} has no layer {layer} with rotary position embeddings; "
            f"it has {format_indices(layers)}"
        )
    return layers.index(layer)
