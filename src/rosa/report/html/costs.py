"""What the runs cost, as a table: mean over the seeds, in units a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rosa.common.formatting import format_bytes, format_duration, format_number
from rosa.compare.results import RunResult
from rosa.report.html.tables import Block, Row


@dataclass(frozen=True)
class Cost:
    """One measure of `costs.json`; `show` writes a value with its unit."""

    key: str
    title: str
    show: Callable[[float], str]


@dataclass(frozen=True)
class CostTable:
    """What the methods of one model and training set cost, by the measures that were taken."""

    model: str
    train_set: str
    measures: tuple[Cost, ...]
    rows: tuple[Row, ...]


def cost_tables(blocks: Sequence[Block]) -> list[CostTable]:
    """One table per model and training set where anything was measured."""
    groups = {(block.model, block.train_set): block for block in reversed(blocks)}
    tables = []
    for (model, train_set), block in reversed(groups.items()):
        measures = tuple(measured([run for row in block.rows for run in row.runs]))
        if measures:
            tables.append(CostTable(model, train_set, measures, block.rows))
    return tables


def energy(joules: float) -> str:
    """Watt-hours, below one as kilojoules."""
    return (
        f"{format_number(joules / 3600)} Wh"
        if joules >= 3600
        else f"{format_number(joules / 1000)} kJ"
    )


COSTS = (
    Cost("train_seconds", "training", format_duration),
    Cost("step_seconds_median", "step", format_duration),
    Cost("tokens_per_second", "tokens/s", lambda v: f"{v:,.0f}"),
    Cost("peak_device_bytes", "GPU memory", format_bytes),
    Cost("peak_host_bytes", "host memory", format_bytes),
    Cost("adapter_bytes", "adapter file", format_bytes),
    Cost("energy_joules", "energy", energy),
    Cost("forgetting", "forgetting", lambda v: f"{v:+.3f}"),
)


def mean_cost(runs: Sequence[RunResult], key: str) -> float | None:
    """Mean of a measure over the runs that have it; None where none has."""
    values = [value for run in runs if (value := _number(run.costs.get(key))) is not None]
    return statistics.fmean(values) if values else None


def measured(runs: Sequence[RunResult]) -> list[Cost]:
    """The measures that any of the runs has."""
    return [cost for cost in COSTS if mean_cost(runs, cost.key) is not None]


def memory_cost(runs: Sequence[RunResult]) -> Cost:
    """Memory of the device where it was measured, else of the host."""
    keys = ("peak_device_bytes", "peak_host_bytes")
    known = [c for c in COSTS if c.key in keys and mean_cost(runs, c.key)]
    return known[0] if known else next(c for c in COSTS if c.key == keys[1])


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
