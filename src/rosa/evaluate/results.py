"""Scores of an evaluation, their averages and their table.

The micro-average is over examples (what the paper prints), the macro-average over tasks. Tasks of
different suites are never averaged together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rosa.common.tables.model import SEEN, Block, Cell, Column, Row, Table
from rosa.common.tables.render import markdown

COLUMNS = (
    *(Column("accuracy"), Column("95 % interval")),
    *(Column("correct", 0), Column("scored", 0), Column("unparsable", 0)),
)


@dataclass(frozen=True)
class TaskScore:
    """The score of one task: `scored` of the `rows` examples in its test set were asked.

    `size` is the number of rows in the published test set, 0 where that is not fixed.
    """

    name: str
    title: str
    suite: str
    correct: int
    scored: int
    unparsable: int
    rows: int
    size: int
    seen_in_training: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Percent of the scored examples that are correct; nan where none was scored."""
        return 100 * self.correct / self.scored if self.scored else float("nan")

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the accuracy, in percent; None where none was scored."""
        from scipy.stats import binomtest

        if not self.scored:
            return None
        found = binomtest(self.correct, self.scored).proportion_ci(0.95, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)


@dataclass(frozen=True)
class Average:
    """The two averages of one suite, in percent."""

    suite: str
    micro: float
    macro: float


@dataclass(frozen=True)
class Results:
    """The scores of a run, its settings, and notes on how they were measured."""

    scores: list[TaskScore]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, task: str) -> TaskScore:
        return next(score for score in self.scores if score.name == task)

    @property
    def averages(self) -> list[Average]:
        """One entry per suite, in the order of the scores."""
        averages = []
        for suite in dict.fromkeys(score.suite for score in self.scores):
            scores = [score for score in self.scores if score.suite == suite]
            accuracies = [score.accuracy for score in scores]
            micro = micro_average(accuracies, [score.scored for score in scores])
            averages.append(Average(suite, micro, sum(accuracies) / len(accuracies)))
        return averages

    def to_json(self) -> dict[str, Any]:
        """Plain data for `results.json`."""
        return {
            "settings": self.settings,
            "tasks": [
                {**asdict(s), "accuracy": round(s.accuracy, 4), "interval_95": s.interval}
                for s in self.scores
            ],
            "averages": [asdict(average) for average in self.averages],
            "notes": self.footnotes(),
        }

    def footnotes(self) -> list[str]:
        """Notes on the scores (training data seen, test sets of other sizes), then `notes`."""
        notes = []
        sets = sorted({name for score in self.scores for name in score.seen_in_training})
        if sets:
            trained_on = self.settings.get("trained_on")
            about = f" This adapter was trained on {', '.join(trained_on)}." if trained_on else ""
            notes.append(
                f"{SEEN} {' and '.join(sets)} holds the training part of this test: a model "
                f"trained on it has seen such questions.{about}"
            )
        notes += [
            f"{score.title}: this test set has {score.rows} rows, the published one {score.size}."
            for score in self.scores
            if score.size not in (0, score.rows)
        ]
        return notes + self.notes

    def table(self) -> Table:
        """One row per task, then the averages of each suite."""
        tasks = [self._row(score) for score in self.scores]
        averages = []
        for average in self.averages:
            for kind, value in (("micro", average.micro), ("macro", average.macro)):
                several = len(self.averages) > 1
                name = f"{average.suite} {kind}" if several else f"{kind}-average"
                averages.append(Row(name, (Cell(value), *[Cell("")] * 4)))
        blocks = (Block("", tuple(tasks)), Block("", tuple(averages)))
        return Table(
            "results", "Accuracy in percent", "task", COLUMNS, blocks, tuple(self.footnotes())
        )

    def _row(self, score: TaskScore) -> Row:
        scored: int | str = score.scored
        if score.scored < score.rows:
            scored = f"{score.scored} of {score.rows}, seed {self.settings.get('seed', 0)}"
        interval = format_interval(*score.interval) if score.interval else None
        values = (score.accuracy, interval, score.correct, scored, score.unparsable)
        mark = SEEN if score.seen_in_training else ""
        return Row(score.title, tuple(map(Cell, values)), mark)

    def markdown(self) -> str:
        """The table, its footnotes and its settings as Markdown."""
        settings = [f"- {key}: {value}\n" for key, value in self.settings.items()]
        return "\n".join([markdown(self.table()), "".join(settings)])


def micro_average(accuracies: Sequence[float], sizes: Sequence[int]) -> float:
    """Accuracy over all examples: each task's accuracy weighted by its size."""
    return sum(a * n for a, n in zip(accuracies, sizes, strict=True)) / sum(sizes)


def format_interval(low: float, high: float, sign: str = "") -> str:
    """`61.2 to 70.4`; with `sign="+"` as a difference, `-1.0 to +3.2`."""
    return f"{low:{sign}.1f} to {high:{sign}.1f}"
