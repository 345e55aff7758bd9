"""Each method of a study against the best baseline, with tests of significance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rosa.compare.results import RunResult, StudyResults, by_method
from rosa.compare.significance import (
    RESAMPLES,
    SIGNIFICANCE_LEVEL,
    ConfidenceInterval,
    McNemar,
    MeanStd,
    TTest,
    bootstrap,
    holm,
    mcnemar,
    welch,
)
from rosa.data.row_files import read_rows
from rosa.errors import RosaError, did_you_mean

Answers = tuple[Path, int, int] | None  # a file, when it was written, its size
StarTest = Literal["t", "examples"]
TESTS = {
    "t": "two-sided Welch t-test over seeds",
    "examples": "exact two-sided McNemar test over examples",
}


@dataclass(frozen=True)
class Difference:
    """One method against the baseline: micro averages of one suite, in percent.

    Attributes:
        ours, theirs: the seeds of the method and of the baseline.
        difference: of their means; above 0 the method is better.
        t, mcnemar: the tests; `t_holm`, `mcnemar_holm`: their p values after Holm's correction
            over the methods compared within this model, training set and suite.
        interval: 95 % bootstrap interval of the difference over examples.
    """

    model: str
    train_set: str
    suite: str
    method: str
    title: str
    baseline: str
    baseline_title: str
    ours: MeanStd
    theirs: MeanStd
    difference: float
    t: TTest
    mcnemar: McNemar
    interval: ConfidenceInterval
    t_holm: float | None = None
    mcnemar_holm: float | None = None

    def p(self, test: StarTest, corrected: bool = False) -> float | None:
        """The p value of a test."""
        if test == "t":
            return self.t_holm if corrected else self.t.p
        return self.mcnemar_holm if corrected else self.mcnemar.p

    def reason(self, test: StarTest) -> str | None:
        """Why a test is not possible."""
        return self.t.reason if test == "t" else self.mcnemar.reason

    def star(self, test: StarTest, corrected: bool = False) -> bool:
        """Whether the method is significantly better than the baseline."""
        p = self.p(test, corrected)
        up = self.difference > 0
        if test == "examples" and self.mcnemar.ahead is not None:
            up = up and self.mcnemar.ahead > (self.mcnemar.behind or 0)
        return p is not None and p < SIGNIFICANCE_LEVEL and up


def differences(
    study: StudyResults, model: str, train_set: str, suite: str, baseline: str | None = None
) -> list[Difference]:
    """Every other method against `baseline`; empty where there is nothing to compare with.

    Args:
        baseline: a method's name; None is the baseline method with the highest mean micro average.
    """
    groups = by_method(study.select(model=model, train_set=train_set), suite)
    against = baseline if baseline is not None else best_baseline(groups, suite)
    if against is None or against not in groups:
        return []
    found = [
        _difference(study, runs, groups[against], suite)
        for method, runs in groups.items()
        if method != against
    ]
    t, paired = holm([d.t.p for d in found]), holm([d.mcnemar.p for d in found])
    return [replace(d, t_holm=p, mcnemar_holm=q) for d, p, q in zip(found, t, paired, strict=True)]


def best_baseline(groups: dict[str, list[RunResult]], suite: str) -> str | None:
    """The method of the group `baseline` with the highest mean; the earlier one of equals."""
    means = {
        method: float(np.mean([run.micro(suite) for run in runs]))
        for method, runs in groups.items()
        if runs[0].group == "baseline"
    }
    return max(means, key=lambda method: means[method]) if means else None


def find_method(study: StudyResults, name: str) -> str:
    """The study's method of that name or title.

    Raises:
        RosaError: there is none.
    """
    methods = {run.title: run.method for run in study.runs}
    methods |= {method: method for method in study.names("method")}
    if name not in methods:
        raise RosaError(
            f"no finished run of {study.folder} has the method '{name}'"
            f"{did_you_mean(name, methods)}; choose from {', '.join(study.names('method'))}"
        )
    return methods[name]


def _difference(
    study: StudyResults, runs: Sequence[RunResult], against: Sequence[RunResult], suite: str
) -> Difference:
    ours, theirs = ([run.micro(suite) for run in side] for side in (runs, against))
    mine, other = MeanStd.of(ours), MeanStd.of(theirs)
    tasks = [score.name for score in runs[0].scores if score.suite == suite]
    answers = [
        tuple(tuple(_answers(study, run, task) for run in side) for task in tasks)
        for side in (runs, against)
    ]
    paired, interval = _paired(*answers)
    return Difference(
        model=runs[0].model,
        train_set=runs[0].train_set,
        suite=suite,
        method=runs[0].method,
        title=runs[0].title,
        baseline=against[0].method,
        baseline_title=against[0].title,
        ours=mine,
        theirs=other,
        difference=mine.mean - other.mean,
        t=welch(ours, theirs),
        mcnemar=paired,
        interval=interval,
    )


def _answers(study: StudyResults, run: RunResult, task: str) -> Answers:
    """A file of answers with its time and size, a key for caches; None where it is missing."""
    file = study.answers_file(run, task)
    if not file.is_file():
        return None
    state = file.stat()
    return file, state.st_mtime_ns, state.st_size


# Tables are rewritten after each run, and most of what they compare has not changed since.
@lru_cache(maxsize=4096)
def _paired(
    ours: tuple[tuple[Answers, ...], ...], theirs: tuple[tuple[Answers, ...], ...]
) -> tuple[McNemar, ConfidenceInterval]:
    """The tests over examples, from each side's answers per task and run."""
    shares: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for mine, others in zip(ours, theirs, strict=True):
        if None in mine or None in others:
            reason = "answers are missing"
            return McNemar(reason=reason), ConfidenceInterval(reason=reason)
        try:
            read = [[_read(answers) for answers in side if answers] for side in (mine, others)]
        except RosaError as error:  # one damaged file is no reason to show no table
            return McNemar(reason=str(error)), ConfidenceInterval(reason=str(error))
        first, _ = read[0][0]
        if any(not np.array_equal(indices, first) for side in read for indices, _ in side):
            reason = "runs were evaluated on different examples"
            return McNemar(reason=reason), ConfidenceInterval(reason=reason)
        for share, side in zip(shares, read, strict=True):
            share.append(np.mean([correct for _, correct in side], axis=0))
    return mcnemar(*map(np.concatenate, shares)), bootstrap(*shares)


@lru_cache(maxsize=4096)
def _read(answers: tuple[Path, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples, ascending, and whether each was answered right."""
    records = sorted((r["index"], bool(r["correct"])) for r in read_rows(answers[0]))
    indices, correct = zip(*records, strict=True)
    return np.array(indices, dtype=int), np.array(correct, dtype=bool)


def to_json(found: Sequence[Difference], test: StarTest, corrected: bool) -> dict[str, Any]:
    """Plain data for `significance.json`."""
    return {
        "level": SIGNIFICANCE_LEVEL,
        "star": test,
        "holm": corrected,
        "tests": {**TESTS, "interval": f"paired bootstrap over examples, {RESAMPLES} resamples"},
        "differences": [{**asdict(d), "star": d.star(test, corrected)} for d in found],
    }
