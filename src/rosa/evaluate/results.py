"""Scores of a run, their averages, and the table in its three forms: terminal, Markdown, JSON.

The micro-average is over examples (what the paper prints), the macro-average over tasks. Tasks of
different suites are never averaged together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("task", "acc. %", "correct", "scored", "unparsable")
SEEN_MARK = "†"


@dataclass(frozen=True)
class TaskScore:
    """How one task went: `rows` is what the test set holds, `scored` what the model was asked."""

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


@dataclass(frozen=True)
class Average:
    """The two averages of one suite, in percent."""

    suite: str
    micro: float
    macro: float


@dataclass(frozen=True)
class Results:
    """Everything a run found out; `settings` say under what conditions."""

    scores: list[TaskScore]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, task: str) -> TaskScore:
        return next(score for score in self.scores if score.name == task)

    @property
    def averages(self) -> list[Average]:
        """One entry per suite, in the order of the scores."""
        suites = dict.fromkeys(score.suite for score in self.scores)
        return [_average(s, [x for x in self.scores if x.suite == s]) for s in suites]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `results.json`."""
        return {
            "settings": self.settings,
            "tasks": [{**asdict(s), "accuracy": round(s.accuracy, 4)} for s in self.scores],
            "averages": [asdict(average) for average in self.averages],
            "notes": self.footnotes(),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows as text, averages last."""
        sampled_seed = self.settings.get("seed", 0)
        body = [_row(score, sampled_seed) for score in self.scores]
        for average in self.averages:
            several = len(self.averages) > 1
            for kind, value in (("micro", average.micro), ("macro", average.macro)):
                name = f"{average.suite} {kind}" if several else f"{kind}-average"
                body.append((name, f"{value:.1f}", "", "", ""))
        return body

    def footnotes(self) -> list[str]:
        """What a reader must know before believing the table."""
        notes = []
        sets = sorted({name for score in self.scores for name in score.seen_in_training})
        if sets:
            trained_on = self.settings.get("trained_on")
            about = f" This adapter was trained on {', '.join(trained_on)}." if trained_on else ""
            notes.append(
                f"{SEEN_MARK} {' and '.join(sets)} holds the training part of this test: a model "
                f"trained on it has seen such questions.{about}"
            )
        notes += [
            f"{score.title}: this test set has {score.rows} rows, the published one {score.size}."
            for score in self.scores
            if score.size not in (0, score.rows)
        ]
        return notes + self.notes

    def markdown(self) -> str:
        """The table, its footnotes and its settings as Markdown."""
        lines = [_line(HEADER), _line(["---", *["---:"] * (len(HEADER) - 1)])]
        lines += [_line(row) for row in self.rows()]
        lines += ["", *(f"{note}\n" for note in self.footnotes())]
        lines += [f"- {key}: {value}" for key, value in self.settings.items()]
        return "\n".join(lines) + "\n"

    def table(self) -> Table:
        """The table for a terminal; its footnotes are the caption."""
        from rich.table import Table

        table = Table(caption="\n".join(self.footnotes()) or None, caption_justify="left")
        for i, name in enumerate(HEADER):
            table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
        for i, row in enumerate(self.rows()):
            table.add_row(*row, end_section=i == len(self.scores) - 1)
        return table


def micro_average(accuracies: Sequence[float], sizes: Sequence[int]) -> float:
    """Accuracy over all examples: each task's accuracy weighted with its size."""
    return sum(a * n for a, n in zip(accuracies, sizes, strict=True)) / sum(sizes)


def _average(suite: str, scores: Sequence[TaskScore]) -> Average:
    accuracies = [score.accuracy for score in scores]
    micro = micro_average(accuracies, [score.scored for score in scores])
    return Average(suite, micro, sum(accuracies) / len(accuracies))


def _row(score: TaskScore, seed: int) -> tuple[str, ...]:
    mark = f" {SEEN_MARK}" if score.seen_in_training else ""
    scored = str(score.scored)
    if score.scored < score.rows:
        scored = f"{score.scored} of {score.rows}, seed {seed}"
    return (
        score.title + mark,
        f"{score.accuracy:.1f}",
        str(score.correct),
        scored,
        str(score.unparsable),
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
