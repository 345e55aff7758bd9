"""The results of a study as the page shows them: a table per model, training set and suite.

Figures, tests and footnotes are those of `rosa tables`; here are the values behind them, which
headings sort by and plots draw.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rosa.common.tables.model import SEEN, Table
from rosa.compare.results import RunResult, StudyResults
from rosa.compare.statistics import format_p_value
from rosa.report.tables import captions, paper
from rosa.report.tables.build import difference_table
from rosa.report.tables.differences import TESTS
from rosa.report.tables.sections import MethodRuns, Section, sections

MICRO, MACRO = "micro", "macro"


@dataclass(frozen=True)
class Column:
    """An average, or a task with the questions that were asked of it."""

    name: str
    title: str
    questions: int | None = None


@dataclass(frozen=True)
class Cell:
    """One figure over the seeds, in percent."""

    values: tuple[float, ...]
    place: int = 0  # 1 is the best of its column, 2 the second
    star: str | None = None  # what the test said, where it found a difference

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """MeanStd standard deviation; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One method: its runs, a cell per column, and the paper's micro-average where it has one."""

    method: str
    title: str
    group: str
    runs: tuple[RunResult, ...]
    cells: tuple[Cell, ...]
    paper: float | None = None

    @property
    def percent(self) -> float:
        return statistics.fmean(run.percent for run in self.runs)

    @property
    def trainable(self) -> int:
        return round(statistics.fmean(run.trainable for run in self.runs))


@dataclass(frozen=True)
class Block:
    """The methods of one model, trained on one set and asked one suite; averages come first."""

    model: str
    train_set: str
    suite: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    micro = 0  # index of the micro-average among the columns

    @property
    def tasks(self) -> range:
        """Indices of the tasks among the columns."""
        return range(2, len(self.columns))

    @property
    def has_paper(self) -> bool:
        return any(row.paper is not None for row in self.rows)

    def figure(self, run: RunResult, column: Column) -> float | None:
        """One run's figure of a column; None where it was not asked."""
        if column.name == MICRO:
            return run.micro(self.suite)
        if column.name == MACRO:
            return run.macro(self.suite)
        return next((s.accuracy for s in run.scores if s.name == column.name), None)


@dataclass(frozen=True)
class Chapter:
    """What belongs together: a training set and a suite, a block per model.

    Attributes:
        notes: the sentences below the tables.
        differences: each method against the best baseline; None where there is no baseline.
    """

    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    differences: Table | None


def chapters(study: StudyResults) -> list[Chapter]:
    """All results, in the order of the grid."""
    return [_chapter(section) for section in sections(study)]


def _chapter(section: Section) -> Chapter:
    notes = captions.notes(section)
    printed = paper.averages([task.name for task in section.tasks], section.models)
    if printed:
        notes.append(paper.COLUMN_NOTE)
    differences = difference_table(section) if section.all_differences else None
    blocks = (_block(section, model, methods, printed) for model, methods in section.rows.items())
    return Chapter(tuple(b for b in blocks if b.rows), tuple(notes), differences)


def _block(
    section: Section,
    model: str,
    methods: Sequence[MethodRuns],
    printed: dict[tuple[str, str], float],
) -> Block:
    columns = _columns(section)
    empty = Block(model, section.train_set, section.suite, columns, ())
    methods = [method for method in methods if method.runs]
    values = [[_values(empty, method, column) for column in columns] for method in methods]
    places = [_places([row[i] for row in values]) for i in range(len(columns))]
    stars = _stars(section, model)
    rows = []
    for at, method in enumerate(methods):
        cells = tuple(
            Cell(values[at][i], places[i][at], stars.get(method.name) if i == empty.micro else None)
            for i in range(len(columns))
        )
        group = method.runs[0].group
        said = printed.get((model, method.name))
        rows.append(Row(method.name, method.title, group, method.runs, cells, said))
    return Block(model, section.train_set, section.suite, columns, tuple(rows))


def _columns(section: Section) -> tuple[Column, ...]:
    averages = (Column(MICRO, "micro avg."), Column(MACRO, "macro avg."))
    tasks = []
    for task in section.tasks:
        mark = f" {SEEN}" if (section.seen(task.name) or (0, 0))[0] else ""
        tasks.append(Column(task.name, task.title + mark, task.scored))
    return (*averages, *tasks)


def _values(block: Block, method: MethodRuns, column: Column) -> tuple[float, ...]:
    figures = (block.figure(run, column) for run in method.runs)
    return tuple(value for value in figures if value is not None)


def _places(column: Sequence[tuple[float, ...]]) -> list[int]:
    """1 for the highest mean as printed, 2 for the next; none where all are the same."""
    means = [round(statistics.fmean(values), 1) if values else None for values in column]
    ranked = sorted({mean for mean in means if mean is not None}, reverse=True)
    if len(ranked) < 2:
        return [0] * len(column)
    order: dict[float | None, int] = {ranked[0]: 1, ranked[1]: 2}
    return [order.get(mean, 0) for mean in means]


def _stars(section: Section, model: str) -> dict[str, str]:
    """By method, what the test said of it."""
    test, holm = section.options.star, section.options.holm
    return {
        d.method: f"better than {d.baseline_title}, p {format_p_value(d.p(test, holm))} "
        f"({TESTS[test]})"
        for d in section.found[model]
        if d.star(test, holm)
    }
