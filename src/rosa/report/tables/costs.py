"""What the runs cost and which learning rates were tuned, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rosa.common.formatting import format_bytes, format_duration, format_number
from rosa.common.tables.model import Block, Cell, Column, Row, Style, Table
from rosa.compare.results import RunResult, StudyResults


def format_energy(joules: float) -> str:
    """Watt-hours, below one as kilojoules."""
    small = joules < 3600
    return f"{format_number(joules / (1000 if small else 3600))} {'kJ' if small else 'Wh'}"


COSTS = {  # keys of costs.json
    "train_seconds": Column("Training", unit=format_duration),
    "step_seconds_median": Column("Step", unit=format_duration),
    "tokens_per_second": Column("Tokens/s", unit="{:,.0f}".format),
    "peak_device_bytes": Column("GPU memory", unit=format_bytes),
    "peak_host_bytes": Column("Host memory", unit=format_bytes),
    "adapter_bytes": Column("Adapter file", unit=format_bytes),
    "energy_joules": Column("Energy", unit=format_energy),
    "forgetting": Column("Forgetting", unit="{:+.3f}".format),
}
TRAINABLE = Column("Trainable", unit="{:,.0f}".format)


def mean_cost(runs: Sequence[RunResult], key: str) -> float | None:
    """Mean of a measure over the runs that have it; None where none has."""
    values = [run.costs.get(key) for run in runs]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return statistics.fmean(numbers) if numbers else None


def cost_table(study: StudyResults, model: str, train_set: str) -> Table | None:
    """Means over the seeds of what was measured; None where nothing was."""
    runs = study.select(model=model, train_set=train_set)
    keys = [key for key in COSTS if mean_cost(runs, key) is not None]
    if not keys:
        return None
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        values = [
            statistics.fmean(run.trainable for run in own),
            *(mean_cost(own, k) for k in keys),
        ]
        rows.append(Row(own[0].title, tuple(map(Cell, values)), group=own[0].group))
    columns = (TRAINABLE, *(COSTS[key] for key in keys))
    return _table("costs", model, train_set, columns, rows)


def tuning_table(study: StudyResults, model: str, train_set: str) -> Table | None:
    """Validation loss of each candidate learning rate, the chosen one styled as the best."""
    records = [t for t in study.tuning if (t["model"], t["train_set"]) == (model, train_set)]
    if not records:
        return None
    rates = sorted({float(rate) for record in records for rate in record["losses"]})
    shown = {run.method: run for run in study.runs}
    rows = []
    for record in records:
        run = shown.get(record["method"])
        cells = _losses(record, rates)
        rows.append(
            Row(run.title if run else record["method"], cells, group=run.group if run else "")
        )
    columns = tuple(Column(f"{rate:g}", 4) for rate in rates)
    return _table("learning rates", model, train_set, columns, rows)


def _losses(record: dict[str, Any], rates: Sequence[float]) -> tuple[Cell, ...]:
    losses = {float(rate): loss for rate, loss in record["losses"].items()}
    chosen = None if record.get("chosen") is None else float(record["chosen"])
    styles: dict[bool, Style] = {True: "best", False: ""}
    return tuple(Cell(losses.get(rate), style=styles[rate == chosen]) for rate in rates)


def _table(
    what: str, model: str, train_set: str, columns: tuple[Column, ...], rows: list[Row]
) -> Table:
    title = f"{model} trained on {train_set}: {what}"
    return Table(what, title, "Method", columns, (Block(model, tuple(rows)),))
