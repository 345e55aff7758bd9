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
from rosa.compare.statistics import MeanStd, format_p_value
from rosa.models.loading import short_name
from rosa.report.tables import captions, paper
from rosa.report.tables.differences import Difference
from rosa.report.tables.sections import MethodRuns, Section

MICRO = "Micro avg. (%)"
MACRO = "Macro avg. (%)"


def main_table(section: Section) -> Table:
    """Methods x tasks, a block per model; the paper's averages beside them where they match."""
    seen = [SEEN if (section.seen(task.name) or (0, 0))[0] else "" for task in section.tasks]
    columns = [
        Column("# Param (%)", 3),
        *(Column(task.title, 1, mark) for task, mark in zip(section.tasks, seen, strict=True)),
        Column(MICRO),
        Column(MACRO),
    ]
    printed = paper.averages([task.name for task in section.tasks], section.models)
    if printed:
        columns.append(Column("Paper's micro avg. (%)"))
    blocks = []
    for model, methods in section.rows.items():
        rows = [_row(section, model, method, printed) for method in methods]
        ranks = range(1, len(section.tasks) + 3)
        blocks.append(Block(short_name(model), tuple(ranked(rows, columns, ranks))))
    notes = captions.notes(section) + ([paper.COLUMN_NOTE] if printed else [])
    return Table(
        name=section.name,
        title=captions.title(section),
        head="Method",
        columns=tuple(columns),
        blocks=tuple(blocks),
        notes=tuple(notes),
        ranking=RANKING,
        names_models=len(section.models) > 1,
    )


def _row(
    section: Section, model: str, method: MethodRuns, printed: dict[tuple[str, str], float]
) -> Row:
    scores = [_cell(method.accuracy(task.name)) for task in section.tasks]
    if not section.options.std:
        scores = [replace(cell, spread=None) for cell in scores]
    cells = [
        replace(_cell(method.sample(lambda run: run.percent)), spread=None),
        *scores,
        replace(_micro(section, method), star=section.star(model, method.name)),
        _cell(method.sample(lambda run: run.macro(section.suite))),
    ]
    if printed:
        cells.append(Cell(printed.get((model, method.name))))
    return Row(method.title, tuple(cells), INCOMPLETE if method.gap else "", method.gap)


def _micro(section: Section, method: MethodRuns) -> Cell:
    return _cell(method.sample(lambda run: run.micro(section.suite)))


def average_table(section: Section) -> Table:
    """Methods x models: micro averages, best and second best of each model."""
    columns = [Column(short_name(model)) for model in section.models]
    rows = []
    for i, method in enumerate(next(iter(section.rows.values()))):
        across = [section.rows[model][i] for model in section.models]
        cells = tuple(
            replace(_micro(section, runs), star=section.star(model, runs.name))
            for model, runs in zip(section.models, across, strict=True)
        )
        gap = "; ".join(
            f"{short_name(model)}: {runs.gap}"
            for model, runs in zip(section.models, across, strict=True)
            if runs.gap
        )
        rows.append(Row(method.title, cells, INCOMPLETE if gap else "", gap))
    return Table(
        name=f"{section.name}-averages",
        title=captions.title(section, "micro average in percent"),
        head="Method",
        columns=tuple(columns),
        blocks=(Block("", tuple(ranked(rows, columns, range(len(columns))))),),
        notes=tuple(captions.notes(section)),
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


def difference_table(section: Section) -> Table:
    """Each method against the best baseline: difference, interval, p values."""
    blocks = []
    for model, found in section.found.items():
        if not found:
            continue
        nothing = [Cell()] * (len(DIFFERENCE_COLUMNS) - 1)
        base = Row(found[0].baseline_title, (_cell(found[0].theirs), *nothing))
        shown = [row.name for row in section.rows[model]]
        rows = [_against(section, d) for d in found if d.method in shown]
        blocks.append(Block(short_name(model), (base, *rows)))
    return Table(
        name=f"{section.name}-significance",
        title=captions.title(section, "difference to the baseline in percent points"),
        head="Method",
        columns=DIFFERENCE_COLUMNS,
        blocks=tuple(blocks),
        notes=tuple(captions.test_notes(section)),
        names_models=len(section.models) > 1,
    )


def _against(section: Section, found: Difference) -> Row:
    low, high = found.interval.low, found.interval.high
    interval = None if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    test, holm = section.options.star, section.options.holm
    cells = (
        _cell(found.ours),
        Cell(found.difference, star=found.star(test, holm)),
        Cell(interval),
        Cell(format_p_value(found.p("t", holm))),
        Cell(format_p_value(found.p("examples", holm))),
        Cell(found.mcnemar.ahead),
        Cell(found.mcnemar.behind),
    )
    return Row(found.title, cells)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def _cell(sample: MeanStd | None) -> Cell:
    return Cell(sample.mean, sample.std) if sample else Cell()
