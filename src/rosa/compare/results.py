"""The results of a study's finished runs, which tables, figures and the report read.

study = StudyResults.load("runs/study")
study.runs[0].accuracy("boolq"), study.runs[0].micro("commonsense")
study.correct(study.runs[0], "boolq")      # {index of the example: right?}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rosa.common.files import atomic_write, read_jsonl
from rosa.errors import RosaError
from rosa.evaluate.results import TaskScore

GRID, RESULTS = "grid.yaml", "results.json"


@dataclass(frozen=True)
class RunResult:
    """One finished run.

    Attributes:
        model, train_set, method: as the grid names them; a method's name is unique in its study.
        title: the method as tables print it.
        group: `baseline`, `ours` or `variant`.
        folder: the run's folder inside the study's; holds recipe, adapter and `evaluation/`.
        learning_rate: the one it was trained with.
        trainable, total: parameters; total counts base and adapter.
        scores: one per task, in the order of the tasks.
        costs: `costs.json` of the run: seconds, bytes, joules; None if not measured.
    """

    model: str
    train_set: str
    method: str
    title: str
    group: str
    seed: int
    folder: str
    learning_rate: float
    trainable: int
    total: int
    scores: tuple[TaskScore, ...]
    costs: dict[str, Any] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, PEFT's rule."""
        return 100 * self.trainable / self.total

    def accuracy(self, task: str) -> float:
        """Percent correct of one task, by its name."""
        return next(score for score in self.scores if score.name == task).accuracy

    def micro(self, suite: str | None = None) -> float:
        """Percent correct over all examples of the suite, or of all tasks if it is None."""
        scores = [s for s in self.scores if suite in (None, s.suite)]
        return 100 * sum(s.correct for s in scores) / sum(s.scored for s in scores)

    def macro(self, suite: str | None = None) -> float:
        """Mean of the tasks' accuracies, in percent."""
        values = [s.accuracy for s in self.scores if suite in (None, s.suite)]
        return sum(values) / len(values)


@dataclass(frozen=True)
class StudyResults:
    """All finished runs of one study, in the order of its grid.

    Attributes:
        folder: the study's folder.
        runs: finished runs.
        failures: `{"run": ..., "error": ...}` for those that failed.
        tuning: `{"model", "train_set", "method", "losses": {rate: validation loss}, "chosen"}`.
        environment: machine, versions and commit.
        grid: the resolved grid.
    """

    folder: Path
    runs: tuple[RunResult, ...]
    failures: tuple[dict[str, str], ...] = ()
    tuning: tuple[dict[str, Any], ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> StudyResults:
        """Read a study's `results.json`.

        Raises:
            RosaError: there is none, or it cannot be read.
        """
        file = Path(folder) / RESULTS
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            runs = tuple(_run(values) for values in content["runs"])
        except FileNotFoundError:
            if (Path(folder) / GRID).is_file():
                raise RosaError(
                    f"no run of {folder} has finished yet; rerun `rosa compare` to resume it"
                ) from None
            raise RosaError(
                f"{folder} holds no study (no {RESULTS}); `rosa compare GRID.yaml` writes one"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RosaError(f"{file} cannot be read: {error}") from None
        rest: dict[str, Any] = {key: tuple(content.get(key, ())) for key in ("failures", "tuning")}
        rest |= {key: content.get(key, {}) for key in ("environment", "grid")}
        return cls(Path(folder), runs, **rest)

    def save(self) -> None:
        """Replace the study's `results.json` in one step."""
        values = asdict(self)
        keys = ("environment", "grid", "tuning", "failures", "runs")
        content = {key: values[key] for key in keys}
        atomic_write(self.folder / RESULTS, json.dumps(content, indent=1) + "\n")

    def answers_file(self, run: RunResult, task: str) -> Path:
        """Where a run's answers are; missing if they were not kept with the results."""
        return self.folder / run.folder / "evaluation" / f"{task}.jsonl"

    def answers(self, run: RunResult, task: str) -> list[dict[str, Any]]:
        """The lines of `answers_file`: index, prompt, response, prediction, label, correct."""
        return read_jsonl(self.answers_file(run, task))

    def correct(self, run: RunResult, task: str) -> dict[int, bool]:
        """Whether each answer is correct, by the example's index in the test set."""
        return {record["index"]: record["correct"] for record in self.answers(run, task)}

    def select(self, **wanted: Any) -> list[RunResult]:
        """Runs whose attributes equal those given: `study.select(model=..., method=...)`."""
        return [r for r in self.runs if all(getattr(r, k) == v for k, v in wanted.items())]

    def names(self, attribute: str) -> list[Any]:
        """The values of one attribute, each once, in the order of the runs."""
        return list(dict.fromkeys(getattr(run, attribute) for run in self.runs))


def by_method(runs: Sequence[RunResult], suite: str) -> dict[str, list[RunResult]]:
    """The runs of each method that have scores of the suite, in their order."""
    groups: dict[str, list[RunResult]] = {}
    for run in runs:
        if any(score.suite == suite for score in run.scores):
            groups.setdefault(run.method, []).append(run)
    return groups


def read_score(values: dict[str, Any]) -> TaskScore:
    """One task's score from the `results.json` of a study or an evaluation."""
    known = {key: value for key, value in values.items() if key in TaskScore.__dataclass_fields__}
    return TaskScore(**{**known, "seen_in_training": tuple(known["seen_in_training"])})


def _run(values: dict[str, Any]) -> RunResult:
    return RunResult(**{**values, "scores": tuple(map(read_score, values["scores"]))})
