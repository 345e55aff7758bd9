"""The results of a study as tables: one block per model, training set and suite of tasks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rosa.study.compare.results import RunResult, StudyResults

MICRO, MACRO = "micro", "macro"


@dataclass(frozen=True)
class Column:
    """A task or an average; `trained_on` names the training sets that hold such questions."""

    name: str
    title: str
    questions: int | None = None
    trained_on: tuple[str, ...] = ()


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
        """Sample standard deviation; None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One method: its runs, and a cell per column."""

    method: str
    title: str
    group: str
    runs: tuple[RunResult, ...]
    cells: tuple[Cell, ...]

    @property
    def percent(self) -> float:
        return statistics.fmean(run.percent for run in self.runs)

    @property
    def trainable(self) -> int:
        return round(statistics.fmean(run.trainable for run in self.runs))


@dataclass(frozen=True)
class Block:
    """One table: methods that were trained on one set and asked one suite."""

    model: str
    train_set: str
    suite: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def figure(self, run: RunResult, column: Column) -> float | None:
        """One run's figure of a column; None where it was not asked."""
        values = _figures([run], self.suite, column.name)
        return values[0] if values else None

    @property
    def micro(self) -> int:
        """Index of the micro-average among the columns; the averages come first."""
        return 0

    @property
    def tasks(self) -> range:
        """Indices of the tasks among the columns."""
        return range(2, len(self.columns))

    @property
    def incomplete(self) -> list[Row]:
        """Methods with fewer runs than seeds, whose averages are over those that finished."""
        return [row for row in self.rows if len(row.runs) < len(self.seeds)]


Stars = Callable[[str, str, str], "dict[tuple[str, str], str]"]


def blocks(study: StudyResults, stars: Stars | None = None) -> list[Block]:
    """All tables, in the order of the grid.

    Args:
        stars: `stars(model, train_set, suite)` gives what to say about the (method, column)
            pairs that are significant.
    """
    found = []
    for model in study.names("model"):
        for train_set in study.names("train_set"):
            runs = study.select(model=model, train_set=train_set)
            for suite in dict.fromkeys(score.suite for run in runs for score in run.scores):
                marks = stars(model, train_set, suite) if stars else {}
                found.append(_block(study, model, train_set, suite, runs, marks))
    return found


def _block(
    study: StudyResults,
    model: str,
    train_set: str,
    suite: str,
    runs: Sequence[RunResult],
    marks: dict[tuple[str, str], str],
) -> Block:
    runs = [run for run in runs if any(s.suite == suite for s in run.scores)]
    columns = _columns(suite, runs)
    methods = [m for m in study.names("method") if any(r.method == m for r in runs)]
    figures = {
        m: [_figures([r for r in runs if r.method == m], suite, c.name) for c in columns]
        for m in methods
    }
    rows = []
    for method in methods:
        own = [run for run in runs if run.method == method]
        cells = tuple(
            Cell(
                figures[method][i],
                _place(method, {m: figures[m][i] for m in methods}),
                marks.get((method, column.name)),
            )
            for i, column in enumerate(columns)
        )
        rows.append(Row(method, own[0].title, own[0].group, tuple(own), cells))
    seeds = tuple(study.grid.get("seeds") or study.names("seed"))
    return Block(model, train_set, suite, columns, tuple(rows), seeds)


def _columns(suite: str, runs: Sequence[RunResult]) -> tuple[Column, ...]:
    scores = {s.name: s for run in runs for s in run.scores if s.suite == suite}
    tasks = [Column(s.name, s.title, s.scored, s.seen_in_training) for s in scores.values()]
    return (Column(MICRO, "micro avg."), Column(MACRO, "macro avg."), *tasks)


def _figures(runs: Sequence[RunResult], suite: str, column: str) -> tuple[float, ...]:
    if column == MICRO:
        return tuple(run.micro(suite) for run in runs)
    if column == MACRO:
        return tuple(run.macro(suite) for run in runs)
    named = [s for run in runs for s in run.scores if s.name == column]
    return tuple(score.accuracy for score in named)


def _place(method: str, figures: dict[str, tuple[float, ...]]) -> int:
    """1 for the highest mean as printed, 2 for the next; a lone method has no place."""
    means = {m: round(statistics.fmean(v), 1) for m, v in figures.items() if v}
    ranked = sorted(set(means.values()), reverse=True)
    if len(ranked) < 2 or method not in means:
        return 0
    return {ranked[0]: 1, ranked[1]: 2}.get(means[method], 0)
