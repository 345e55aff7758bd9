"""An inspection as numbers: `inspect.json`, and the summary for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosa.common.environment import describe_environment
from rosa.inspect.adapter_effect import Distribution
from rosa.inspect.capture import LayerStates
from rosa.inspect.inspection import KINDS, Inspection
from rosa.inspect.strength import pair_of_dimension

if TYPE_CHECKING:
    from rich.table import Table

_DIGITS = 6


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
        "head_dim": states.layout.head_dim,
        "rotary_dim": states.layout.rotary_dim,
        "pairing": states.layout.pairing,
        "pair_of_dimension": pair_of_dimension(states.layout),
        "wavelengths": _numbers(2 * math.pi / states.frequencies),
        "low_dimensions": inspection.low[at],
        "low_share_of_dimensions": len(inspection.low[at]) / states.layout.head_dim,
    }
    record |= _strengths(states, inspection.low_shares(at))
    if inspection.base_states is not None:
        record["without_adapter"] = _strengths(
            inspection.base_states[at], inspection.low_shares(at, base=True)
        )
    effect = next((e for e in inspection.effects if e.index == states.index), None)
    if effect is not None:
        record["alpha_s"] = {kind: _distribution(getattr(effect, kind)) for kind in KINDS}
        record["alpha_s"]["dimensions"] = effect.dimensions
    if inspection.norm_changes:
        changes = inspection.norm_changes[at]
        record["norm_changes"] = {name: _number(change) for name, change in changes.items()}
    return record


def _strengths(states: LayerStates, shares: Sequence[float]) -> dict[str, Any]:
    return {
        kind: {
            "low_share_of_energy": _number(share),
            "strength": [_numbers(head) for head in getattr(states, kind)],
        }
        for kind, share in zip(KINDS, shares, strict=True)
    }


def _distribution(spread: Distribution) -> dict[str, Any]:
    return {
        "rms": _number(spread.rms),
        "largest": _number(spread.largest),
        "percentiles": {str(p): _number(value) for p, value in spread.percentiles.items()},
        "rms_per_head": _numbers(spread.per_head),
    }


def summary(inspection: Inspection) -> Table:
    """Per layer the low-frequency share of energy beside that of dimensions; α·S for RoSA."""
    from rich.table import Table

    with_base = inspection.base_states is not None
    table = Table(title="low-frequency dimensions: their share in %", title_justify="left")
    headings = ["layer", "of dimensions", "of queries' energy", "of keys' energy"]
    if inspection.effects:
        headings += ["RMS of α·S, queries", "keys"]
    for heading in headings:
        table.add_column(heading, justify="right")
    effects = {effect.index: effect for effect in inspection.effects}
    for at, states in enumerate(inspection.states):
        now = inspection.low_shares(at)
        before = inspection.low_shares(at, base=True) if with_base else None
        cells = [f"{_percent(share)}" for share in now]
        if before is not None:
            cells = [f"{_percent(b)} → {cell}" for b, cell in zip(before, cells, strict=True)]
        if effects:
            effect = effects.get(states.index)
            cells += [f"{getattr(effect, k).rms:.3f}" if effect else "-" for k in KINDS]
        expected = len(inspection.low[at]) / states.layout.head_dim
        table.add_row(str(states.index), _percent(expected), *cells)
    return table


def verdict(inspection: Inspection) -> str:
    """One sentence: whether the low frequencies are stronger than their number, over all layers."""
    expected = float(np.mean(inspection.expected_shares()))
    parts = []
    for kind, name in zip(KINDS, ("queries", "keys"), strict=True):
        shares = inspection.shares(kind)
        pairs = zip(shares, inspection.expected_shares(), strict=True)
        above = sum(share > even for share, even in pairs)
        parts.append(
            f"{_percent(float(np.mean(shares)))} % of the {name}' energy "
            f"(more than their number in {above} of {len(shares)} layers)"
        )
    return (
        f"The low-frequency dimensions, {_percent(expected)} % of all, hold "
        f"{' and '.join(parts)}, averaged over layers."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0")


def _numbers(values: Any) -> list[float]:
    return [_number(value) for value in values]


def _number(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
