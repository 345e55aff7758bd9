"""What the runs cost, as a table: mean over the seeds, in units a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


def digits(value: float) -> str:
    """Three significant digits, the last of them even where it is 0."""
    return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """`42.0 s`, `3.50 min`, `2.10 h`."""
    if seconds < 1:
        return f"{digits(1000 * seconds)} ms"
    if seconds < 100:
        return f"{digits(seconds)} s"
    return f"{digits(seconds / 60)} min" if seconds < 100 * 60 else f"{digits(seconds / 3600)} h"


def size(count: float) -> str:
    """Bytes as `1.2 MB` or `3.4 GB`, in powers of ten."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{digits(count / unit)} {name}"
    return f"{count:.0f} B"


def energy(joules: float) -> str:
    """Watt-hours, below one as kilojoules."""
    return f"{digits(joules / 3600)} Wh" if joules >= 3600 else f"{digits(joules / 1000)} kJ"


COSTS = (
    Cost("train_seconds", "training", duration),
    Cost("step_seconds_median", "step", duration),
    Cost("tokens_per_second", "tokens/s", lambda v: f"{v:,.0f}"),
    Cost("peak_device_bytes", "GPU memory", size),
    Cost("peak_host_bytes", "host memory", size),
    Cost("adapter_bytes", "adapter file", size),
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
