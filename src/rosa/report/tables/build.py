"""A study's results as tables.

main_table        methods x tasks, a block per model: the shape of the paper's Tables 1 and 3
average_table     methods x models, micro averages alone: the shape of its Tables 2 and 4
difference_table  each method against the best baseline, with the tests
runs_table        one row per run
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

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
from rosa.compare.results import RunResult
from rosa.compare.significance import MeanStd, format_p_value
from rosa.models.loading import short_name
from rosa.report.tables import captions, paper
from rosa.report.tables.differences import Difference
from rosa.report.tables.sections import MethodRuns, Section

MICRO = "Micro avg. (%)"
MACRO = "Macro avg. (%)"

Score = tuple[Column, Callable[[RunResult], float]]


def main_table(section: Section, *, averages_first: bool = False) -> Table:
    """Methods x tasks, a block per model; with the paper's averages where they match."""
    tasks, averages = _scores(section)
    scores = [*averages, *tasks] if averages_first else [*tasks, *averages]
    printed = paper.averages([task.name for task in section.tasks], section.models)
    columns = [Column("# Param (%)", 3), *(column for column, _ in scores)]
    if printed:
        columns.append(Column("Paper's micro avg. (%)"))
    blocks = []
    for model, methods in section.rows.items():
        rows = []
        for method in methods:
            cells = [_cell(method.sample(lambda run: run.percent), spread=False)]
            for column, score in scores:
                spread = section.options.std or column.title in (MICRO, MACRO)
                star = column.title == MICRO and section.star(model, method.name)
                cells.append(replace(_cell(method.sample(score), spread), star=star))
            if printed:
                cells.append(Cell(printed.get((model, method.name))))
            rows.append(_row(method, cells, method.missing))
        ranks = range(1, len(scores) + 1)
        blocks.append(Block(short_name(model), tuple(ranked(rows, columns, ranks))))
    notes = captions.notes(section) + ([paper.COLUMN_NOTE] if printed else [])
    return _table(section, "", "accuracy in percent", columns, blocks, notes, RANKING)


def _scores(section: Section) -> tuple[list[Score], list[Score]]:
    """The tasks and the two averages: each a column and its value of a run."""
    tasks: list[Score] = []
    for task in section.tasks:
        mark = SEEN if (section.seen(task.name) or (0, 0))[0] else ""
        column = Column(task.title, mark=mark)
        tasks.append((column, partial(RunResult.accuracy, task=task.name)))
    micro = partial(RunResult.micro, suite=section.suite)
    macro = partial(RunResult.macro, suite=section.suite)
    return tasks, [(Column(MICRO), micro), (Column(MACRO), macro)]


def _row(method: MethodRuns, cells: list[Cell], missing: str) -> Row:
    return Row(method.title, tuple(cells), INCOMPLETE if missing else "", missing, method.group)


def average_table(section: Section) -> Table:
    """Methods x models: micro averages, best and second best of each model."""
    columns = [Column(short_name(model)) for model in section.models]
    rows = []
    for across in zip(*section.rows.values(), strict=True):  # one method on every model
        cells, missing = [], []
        for model, method in zip(section.models, across, strict=True):
            micro = _cell(method.sample(partial(RunResult.micro, suite=section.suite)))
            cells.append(replace(micro, star=section.star(model, method.name)))
            missing += [f"{short_name(model)}: {method.missing}"] if method.missing else []
        rows.append(_row(across[0], cells, "; ".join(missing)))
    blocks = [Block("", tuple(ranked(rows, columns, range(len(columns)))))]
    what, notes = "micro average in percent", captions.notes(section)
    table = _table(section, "-averages", what, columns, blocks, notes, RANKING)
    return replace(table, names_models=False)


def runs_table(section: Section) -> Table:
    """One row per run: seed, learning rate, trainable parameters, averages, tasks."""
    tasks, averages = _scores(section)
    scores = [*averages, *tasks]
    rate, trainable = (
        Column("Learning rate", unit="{:g}".format),
        Column("Trainable", unit="{:,}".format),
    )
    columns = [Column("Seed", 0), rate, trainable, *(column for column, _ in scores)]
    blocks = []
    for model, methods in section.rows.items():
        rows = []
        for method in methods:
            for run in method.runs:
                values = (run.seed, run.learning_rate, run.trainable)
                cells = map(Cell, (*values, *(score(run) for _, score in scores)))
                rows.append(Row(method.title, tuple(cells), group=method.group))
        blocks.append(Block(short_name(model), tuple(rows)))
    return _table(section, "-runs", "every run", columns, blocks, [])


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
    for model, found in section.differences.items():
        if not found:
            continue
        nothing = [Cell()] * (len(DIFFERENCE_COLUMNS) - 1)
        base = Row(found[0].baseline_title, (_cell(found[0].theirs), *nothing), group="baseline")
        groups = {method.name: method.group for method in section.rows[model]}
        rows = [_against(section, d, groups[d.method]) for d in found if d.method in groups]
        blocks.append(Block(short_name(model), (base, *rows)))
    what, notes = "difference to the baseline in percentage points", captions.test_notes(section)
    return _table(section, "-significance", what, DIFFERENCE_COLUMNS, blocks, notes)


def _against(section: Section, found: Difference, group: str) -> Row:
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
    return Row(found.title, cells, group=group)


def _table(
    section: Section,
    suffix: str,
    what: str,
    columns: Sequence[Column],
    blocks: Sequence[Block],
    notes: Sequence[str],
    ranking: str = "",
) -> Table:
    name, title = section.name + suffix, captions.title(section, what)
    content = (tuple(columns), tuple(blocks), tuple(notes))
    return Table(name, title, "Method", *content, ranking, names_models=len(section.models) > 1)


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def _cell(sample: MeanStd | None, spread: bool = True) -> Cell:
    return Cell(sample.mean, sample.std if spread else None) if sample else Cell()
