"""`inspect_model`: everything that was measured on one model, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rosa.common.formatting import format_indices
from rosa.errors import RosaError
from rosa.inspect.adapter_effect import LayerEffect, norm_scales, relative_change, signal_recorders
from rosa.inspect.capture import LayerStates, query_key_recorders, run_recorded
from rosa.inspect.strength import Array, energy_share, low_dimensions, over_heads, stack_rows
from rosa.inspect.texts import TextSource, TokenizedTexts, read_texts, tokenize_texts
from rosa.models import loading as models

QueryOrKey = Literal["query", "key"]
QUERY_AND_KEY: tuple[QueryOrKey, QueryOrKey] = ("query", "key")
PAPER_R_LOW = 0.25


@dataclass(frozen=True)
class Inspection:
    """What one model, with or without an adapter, looks like inside; lists are by layer."""

    model: str  # the model or adapter as it was named
    base: str
    method: str | None  # the adapter's PEFT type ("ROSA", "LORA", ...), None for a base model
    texts: TokenizedTexts
    r_low: float  # the share of the pairs that counts as low-frequency
    low: list[list[int]]  # low-frequency dimensions of a head
    states: list[LayerStates]  # with the adapter
    base_states: list[LayerStates] | None = None  # without it; None for a base model
    effects: list[LayerEffect] = field(default_factory=list)  # of RoAE, in adapted layers alone
    norm_changes: list[dict[str, float]] = field(default_factory=list)  # relative, by norm
    attention: list[str] = field(default_factory=list)  # "full" or "sliding", if the model says it

    @property
    def layers(self) -> list[int]:
        """The indices of the layers that rotate."""
        return [layer.index for layer in self.states]

    def position(self, layer: int | None) -> int:
        """The position of a layer in the lists; the middle one for None.

        Raises RosaError for a layer that the model does not have.
        """
        return _position(self.layers, layer, self.model)

    def by_layer(self, kind: QueryOrKey, *, base: bool = False) -> Array:
        """Strength (layers, head_dim), root mean square over heads; nan where heads are smaller."""
        states = self.base_states if base else self.states
        return stack_rows([over_heads(getattr(layer, kind)) for layer in states or []])

    def energy_shares(self, kind: QueryOrKey, *, base: bool = False) -> list[float]:
        """For each layer the share of the energy Σ z² that is in low-frequency dimensions."""
        states = (self.base_states or []) if base else self.states
        pairs = zip(states, self.low, strict=True)
        return [energy_share(getattr(layer, kind), low) for layer, low in pairs]

    def positions(self, attention: str) -> list[int]:
        """The positions in the lists of the layers with this kind of attention."""
        return [at for at, kind in enumerate(self.attention) if kind == attention]

    def dimension_shares(self) -> list[float]:
        """For each layer the share of the dimensions that are low-frequency."""
        pairs = zip(self.states, self.low, strict=True)
        return [len(low) / layer.layout.head_dim for layer, low in pairs]


def check_layer(model: models.Loaded, layer: int | None) -> None:
    """Raises RosaError where `model` has no such layer to inspect, before anything is measured."""
    _position([r.index for r in query_key_recorders(model.model)], layer, model.name)


def inspect_model(
    model: models.Loaded | str,
    texts: TokenizedTexts | Iterable[str] | None = None,
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
        texts: the texts; None takes a sample of the toy questions that come with the package.
        r_low: the share of the pairs that counts as low-frequency; None takes that of the RoSA
            adapter, or the paper's 0.25 where there is none or it modulates all pairs.
        limit, max_length: sample size of the toy questions, and tokens of a text.
        batch_size: texts at a time.
        dtype, device: where `model` is a name.

    Raises:
        RosaError: the model cannot be loaded or inspected, or there is no text.
    """
    if isinstance(model, str):
        model = models.load(model, dtype=dtype, device=device)
    network = model.model
    recorders = query_key_recorders(network)  # raises for an unknown architecture
    peft_config: Any = network.peft_config[network.active_adapter] if model.adapter else None
    peft_type = getattr(peft_config, "peft_type", None)
    if r_low is None:
        r_low = getattr(peft_config, "r_low", PAPER_R_LOW)
        r_low = r_low if r_low < 1 else PAPER_R_LOW
    low = [low_dimensions(recorder.layout, r_low) for recorder in recorders]
    if not isinstance(texts, TokenizedTexts):
        source = read_texts() if texts is None else TextSource("the given text", list(texts))
        limit = limit if texts is None else None
        texts = tokenize_texts(model.tokenizer, source, limit=limit, max_length=max_length)
    states, effects = _measure(network, texts, batch_size)
    method = getattr(peft_type, "value", peft_type)
    kinds = _attention_kinds(network, [layer.index for layer in states])
    found = Inspection(
        model.name, model.base, method, texts, r_low, low, states, effects=effects, attention=kinds
    )
    if not model.adapter:
        return found
    after = norm_scales(network)
    with network.disable_adapter():
        base_states, _ = _measure(network, texts, batch_size)
        pairs = zip(norm_scales(network), after, strict=True)
        changes = [{name: relative_change(b[name], a[name]) for name in b} for b, a in pairs]
    return replace(found, base_states=base_states, norm_changes=changes)


def _attention_kinds(model: Any, layers: list[int]) -> list[str]:
    """Whether the layers see all tokens or a window, by the configuration's `layer_types`."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None)
    if not kinds or max(layers) >= len(kinds):
        return []
    return [kinds[i].removesuffix("_attention") for i in layers]


def _measure(
    model: Any, texts: TokenizedTexts, batch_size: int
) -> tuple[list[LayerStates], list[LayerEffect]]:
    states, signals = query_key_recorders(model), signal_recorders(model)
    tokens = run_recorded(model, texts.sequences, [*states, *signals], batch_size)
    return [r.states(tokens) for r in states], [r.effect(tokens) for r in signals]


def _position(layers: list[int], layer: int | None, model: str) -> int:
    if layer is None:
        return len(layers) // 2
    if layer not in layers:
        raise RosaError(
            f"{models.short_name(model)} has no layer {layer} with rotary position embeddings; "
            f"it has {format_indices(layers)}"
        )
    return layers.index(layer)
