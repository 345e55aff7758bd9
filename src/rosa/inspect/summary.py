"""An inspection as numbers: `inspect.json`, and the table and sentence for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosa.common.environment import describe_environment
from rosa.inspect.adapter_effect import SignalStatistics
from rosa.inspect.capture import LayerStates
from rosa.inspect.inspection import QUERY_AND_KEY, Inspection
from rosa.inspect.strength import pair_of_dimension

if TYPE_CHECKING:
    from rich.table import Table


def write_json(inspection: Inspection, path: Path) -> None:
    """Writes everything that was measured, a layer per line."""
    record = to_json(inspection)
    layers = ",\n".join(json.dumps(layer) for layer in record.pop("layers"))
    head = json.dumps(record, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "layers": [\n{layers}\n]\n}}\n', encoding="utf-8")


def to_json(inspection: Inspection) -> dict[str, Any]:
    """Plain data. Strengths are root mean squares, [head][dimension], to six digits."""
    texts = inspection.texts
    return {
        "model": inspection.model,
        "base": inspection.base,
        "method": inspection.method,
        "text": {
            "source": texts.source,
            "sequences": len(texts.sequences),
            "tokens": texts.tokens,
        },
        "r_low": inspection.r_low,
        "environment": describe_environment(),
        "layers": [_layer(inspection, at) for at in range(len(inspection.states))],
    }


def _layer(inspection: Inspection, at: int) -> dict[str, Any]:
    states = inspection.states[at]
    record: dict[str, Any] = {
        "layer": states.index,
        **({"attention": inspection.attention[at]} if inspection.attention else {}),
        "head_dim": states.layout.head_dim,
        "rotary_dim": states.layout.rotary_dim,
        "pairing": states.layout.pairing,
        "pair_of_dimension": pair_of_dimension(states.layout),
        "wavelengths": _numbers(2 * math.pi / states.frequencies),
        "low_dimensions": inspection.low[at],
        "low_share_of_dimensions": inspection.dimension_shares()[at],
    }
    record |= _strengths(inspection, states, at)
    if inspection.base_states is not None:
        base = inspection.base_states[at]
        record["without_adapter"] = _strengths(inspection, base, at, base=True)
    for effect in inspection.effects:
        if effect.index == states.index:
            signals = {kind: _signal(getattr(effect, kind)) for kind in QUERY_AND_KEY}
            record["alpha_s"] = {**signals, "dimensions": effect.dimensions}
    if inspection.norm_changes:
        changes = inspection.norm_changes[at]
        record["norm_changes"] = {name: _number(change) for name, change in changes.items()}
    return record


def _strengths(
    inspection: Inspection, states: LayerStates, at: int, *, base: bool = False
) -> dict[str, Any]:
    return {
        kind: {
            "low_share_of_energy": _number(inspection.energy_shares(kind, base=base)[at]),
            "strength": [_numbers(head) for head in getattr(states, kind)],
        }
        for kind in QUERY_AND_KEY
    }


def _signal(signal: SignalStatistics) -> dict[str, Any]:
    return {
        "rms": _number(signal.rms),
        "largest": _number(signal.largest),
        "percentiles": {str(p): _number(value) for p, value in signal.percentiles.items()},
        "rms_per_head": _numbers(signal.per_head),
    }


def summary_table(inspection: Inspection) -> Table:
    """Per layer the low-frequency share of dimensions and of energy; the RMS of α·S for RoSA."""
    from rich.table import Table

    table = Table(title="low-frequency dimensions: their share in %", title_justify="left")
    several = len(set(inspection.attention)) > 1
    headings = ["layer", *(["attention"] if several else []), "of dimensions"]
    headings += ["of queries' energy", "of keys' energy"]
    if inspection.effects:
        headings += ["RMS of α·S, queries", "keys"]
    for heading in headings:
        table.add_column(heading, justify="right")
    columns = [inspection.attention] if several else []
    columns.append([_percent(share) for share in inspection.dimension_shares()])
    for kind in QUERY_AND_KEY:
        cells = [_percent(share) for share in inspection.energy_shares(kind)]
        if inspection.base_states is not None:
            before = inspection.energy_shares(kind, base=True)
            cells = [f"{_percent(b)} → {cell}" for b, cell in zip(before, cells, strict=True)]
        columns.append(cells)
    effects = {effect.index: effect for effect in inspection.effects}
    for index, shares in zip(inspection.layers, zip(*columns, strict=True), strict=True):
        effect = effects.get(index)
        signals = [f"{getattr(effect, k).rms:.3f}" if effect else "-" for k in QUERY_AND_KEY]
        table.add_row(str(index), *shares, *(signals if effects else []))
    return table


def verdict(inspection: Inspection) -> str:
    """Whether low frequencies hold more energy than their number, over all layers; and a sentence
    for each kind of attention where layers differ in it."""
    sentences = [_verdict(inspection, range(len(inspection.layers)), "averaged over layers")]
    kinds = sorted(set(inspection.attention))
    for kind in kinds if len(kinds) > 1 else []:
        where = inspection.positions(kind)
        words = f"in the {len(where)} layers of {kind} attention"
        sentences.append(_verdict(inspection, where, words))
    return "\n".join(sentences)


def _verdict(inspection: Inspection, layers: Sequence[int], where: str) -> str:
    expected = [inspection.dimension_shares()[at] for at in layers]
    parts = []
    for kind, name in zip(QUERY_AND_KEY, ("queries", "keys"), strict=True):
        all_shares = inspection.energy_shares(kind)
        shares = [all_shares[at] for at in layers]
        above = sum(share > even for share, even in zip(shares, expected, strict=True))
        parts.append(
            f"{_percent(float(np.mean(shares)))} % of the {name}' energy "
            f"(more than their number in {above} of {len(shares)} layers)"
        )
    return (
        f"The low-frequency dimensions, {_percent(float(np.mean(expected)))} % of all, hold "
        f"{' and '.join(parts)}, {where}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _numbers(values: Any) -> list[float]:
    return [_number(value) for value in values]


def _number(value: float) -> float:
    """To six significant digits."""
    return float(f"{value:.6g}")
