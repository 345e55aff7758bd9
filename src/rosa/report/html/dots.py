"""The geometry of a dot plot; it stretches with the page, so its positions are percentages."""

from __future__ import annotations

from dataclasses import dataclass

from rosa.report.html.axes import Tick, fit_percent
from rosa.report.html.tables import Block, Cell, Row


@dataclass(frozen=True)
class Strip:
    """One method: every seed, the mean, and one standard deviation around it."""

    row: Row
    cell: Cell
    seeds: tuple[tuple[int, float, float], ...]  # (seed, accuracy, percent of the width)
    mean: float
    whisker: tuple[float, float] | None


@dataclass(frozen=True)
class DotPlot:
    """Accuracy of one column per method, best first."""

    title: str
    strips: tuple[Strip, ...]
    ticks: tuple[Tick, ...]


def dot_plot(block: Block, column: int) -> DotPlot:
    """The dot plot of one column of a table."""
    rows = [row for row in block.rows if row.cells[column].values]
    rows.sort(key=lambda row: -row.cells[column].mean)
    cells = [row.cells[column] for row in rows]
    axis, ticks = fit_percent([v for cell in cells for v in (*cell.values, *_whisker(cell))])
    strips = []
    for row, cell in zip(rows, cells, strict=True):
        figures = [(run.seed, block.figure(run, block.columns[column])) for run in row.runs]
        seeds = tuple((seed, v, 100 * axis.at(v)) for seed, v in figures if v is not None)
        ends = [100 * axis.at(end) for end in _whisker(cell)]
        whisker = (ends[0], ends[1]) if ends else None
        strips.append(Strip(row, cell, seeds, 100 * axis.at(cell.mean), whisker))
    return DotPlot(block.columns[column].title, tuple(strips), tuple(ticks))


def _whisker(cell: Cell) -> tuple[float, ...]:
    return () if cell.std is None else (cell.mean - cell.std, cell.mean + cell.std)
