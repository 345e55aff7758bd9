"""A study's results as tables.

main_table          methods x tasks, a block per model: the shape of the paper's Tables 1 and 3
average_table       methods x models, micro averages alone: the shape of its Tables 2 and 4
difference_table    each method against the best baseline, with the tests
"""

from __future__ import annotations

from dataclasses import replace

from rosa.common.tables.model import (
    INCOMPLETE,
    RANKING,
    SEEN,
    Block,
    Cell,
    Column,
    Row,
    Table,
    ranked,
)
from rosa.compare.statistics import Sample, stated
from rosa.models.loading import short_name
from rosa.report.tables import captions, paper
from rosa.report.tables.differences import Difference
from rosa.report.tables.sections import MethodRuns, Part

MICRO = "Micro avg. (%)"
MACRO = "Macro avg. (%)"


def main_table(part: Part) -> Table:
    """Methods x tasks, a block per model; the paper's averages beside them where they match."""
    seen = [SEEN if (part.seen(task.name) or (0, 0))[0] else "" for task in part.tasks]
    columns = [
        Column("# Param (%)", 3),
        *(Column(task.title, 1, mark) for task, mark in zip(part.tasks, seen, strict=True)),
        Column(MICRO),
        Column(MACRO),
    ]
    printed = paper.averages([task.name for task in part.tasks], part.models)
    if printed:
        columns.append(Column("Paper's micro avg. (%)"))
    blocks = []
    for model, methods in part.rows.items():
        rows = [_row(part, model, method, printed) for method in methods]
        ranks = range(1, len(part.tasks) + 3)
        blocks.append(Block(short_name(model), tuple(ranked(rows, columns, ranks))))
    notes = captions.notes(part) + ([paper.COLUMN_NOTE] if printed else [])
    return Table(
        name=part.name,
        title=captions.title(part),
        head="Method",
        columns=tuple(columns),
        blocks=tuple(blocks),
        notes=tuple(notes),
        ranking=RANKING,
        names_models=len(part.models) > 1,
    )


def _row(part: Part, model: str, method: MethodRuns, printed: dict[tuple[str, str], float]) -> Row:
    scores = [_cell(method.accuracy(task.name)) for task in part.tasks]
    if not part.options.std:
        scores = [replace(cell, spread=None) for cell in scores]
    cells = [
        replace(_cell(method.sample(lambda run: run.percent)), spread=None),
        *scores,
        replace(_micro(part, method), star=part.star(model, method.name)),
        _cell(method.sample(lambda run: run.macro(part.suite))),
    ]
    if printed:
        cells.append(Cell(printed.get((model, method.name))))
    return Row(method.title, tuple(cells), INCOMPLETE if method.gap else "", method.gap)


def _micro(part: Part, method: MethodRuns) -> Cell:
    return _cell(method.sample(lambda run: run.micro(part.suite)))


def average_table(part: Part) -> Table:
    """Methods x models: micro averages, best and second best of each model."""
    columns = [Column(short_name(model)) for model in part.models]
    rows = []
    for i, method in enumerate(next(iter(part.rows.values()))):
        across = [part.rows[model][i] for model in part.models]
        cells = tuple(
            replace(_micro(part, runs), star=part.star(model, runs.name))
            for model, runs in zip(part.models, across, strict=True)
        )
        gap = "; ".join(
            f"{short_name(model)}: {runs.gap}"
            for model, runs in zip(part.models, across, strict=True)
            if runs.gap
        )
        rows.append(Row(method.title, cells, INCOMPLETE if gap else "", gap))
    return Table(
        name=f"{part.name}-averages",
        title=captions.title(part, "micro average in percent"),
        head="Method",
        columns=tuple(columns),
        blocks=(Block("", tuple(ranked(rows, columns, range(len(columns))))),),
        notes=tuple(captions.notes(part)),
        ranking=RANKING,
    )


DIFFERENCE_COLUMNS = (
    Column(MICRO),
    Column("Difference", signed=True),
    Column("95 % interval"),
    Column("p (t over seeds)"),
    Column("p (McNemar)"),
    Column("Ahead", 0),
    Column("Behind", 0),
)


def difference_table(part: Part) -> Table:
    """Each method against the best baseline: difference, interval, p values."""
    blocks = []
    for model, found in part.found.items():
        if not found:
            continue
        nothing = [Cell()] * (len(DIFFERENCE_COLUMNS) - 1)
        base = Row(found[0].baseline_title, (_cell(found[0].theirs), *nothing))
        shown = [row.name for row in part.rows[model]]
        rows = [_against(part, d) for d in found if d.method in shown]
        blocks.append(Block(short_name(model), (base, *rows)))
    return Table(
        name=f"{part.name}-significance",
        title=captions.title(part, "difference to the baseline in percent points"),
        head="Method",
        columns=DIFFERENCE_COLUMNS,
        blocks=tuple(blocks),
        notes=tuple(captions.test_notes(part)),
        names_models=len(part.models) > 1,
    )


def _against(part: Part, found: Difference) -> Row:
    low, high = found.interval.low, found.interval.high
    interval = None if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    test, holm = part.options.star, part.options.holm
    cells = (
        _cell(found.ours),
        Cell(found.difference, star=found.star(test, holm)),
        Cell(interval),
        Cell(stated(found.p("t", holm))),
        Cell(stated(found.p("examples", holm))),
        Cell(found.mcnemar.ahead),
        Cell(found.mcnemar.behind),
    )
    return Row(found.title, cells)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def _cell(sample: Sample | None) -> Cell:
    return Cell(sample.mean, sample.std) if sample else Cell()
