"""The content of one table: the runs of a training set and suite, by model and method.

Tasks of different suites are never averaged together, so each suite has a table of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import shorten

from rosa.compare.contamination import OverlapTable, load_overlap
from rosa.compare.grid import parse_method_entry
from rosa.compare.job import RunGroup
from rosa.compare.results import RunResult, StudyResults, by_method
from rosa.compare.significance import MeanStd
from rosa.evaluate.results import TaskScore
from rosa.report.tables.differences import Difference, StarTest, differences, find_method

LONGEST_ERROR = 80  # characters of a failed run's error in a footnote


@dataclass(frozen=True)
class TableOptions:
    """What tables show.

    Attributes:
        star: the test that gives the star: over seeds (`t`) or over `examples`.
        holm: correct its p values over the methods of a model.
        std: standard deviations of every task, not of the averages alone.
        baseline: compare with this method instead of the best baseline.
        methods: show these methods only; all where empty.
    """

    star: StarTest = "t"
    holm: bool = False
    std: bool = False
    baseline: str | None = None
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class MethodRuns:
    """One row: a method's runs, and which seeds are `missing` and why (empty where none is)."""

    name: str
    title: str
    runs: tuple[RunResult, ...]
    missing: str = ""

    @property
    def group(self) -> str:
        return self.runs[0].group if self.runs else ""

    def sample(self, value: Callable[[RunResult], float]) -> MeanStd | None:
        """Mean and standard deviation of `value` over the seeds; None without a run."""
        return MeanStd.of([value(run) for run in self.runs]) if self.runs else None


@dataclass(frozen=True)
class Section:
    """Everything about one training set and suite."""

    study: StudyResults
    train_set: str
    suite: str
    name: str
    tasks: tuple[TaskScore, ...]  # of some run: names, titles, sizes
    rows: dict[str, list[MethodRuns]]  # by model
    options: TableOptions
    overlap: OverlapTable | None = None
    differences: dict[str, list[Difference]] = field(default_factory=dict)  # by model

    @property
    def models(self) -> list[str]:
        return list(self.rows)

    @property
    def all_differences(self) -> list[Difference]:
        return [d for found in self.differences.values() for d in found]

    def star(self, model: str, method: str) -> bool:
        """Whether the method's micro average gets a star."""
        test, holm = self.options.star, self.options.holm
        return any(d.star(test, holm) for d in self.differences[model] if d.method == method)

    def seen(self, task: str) -> tuple[int, int] | None:
        """Examples of a task that the training data contains, of all; None where not checked."""
        values = (self.overlap or {}).get(self.train_set, {}).get(task)
        return (values["matches"], values["of"]) if values else None


def sections(study: StudyResults, options: TableOptions | None = None) -> list[Section]:
    """Every training set and suite that has a finished run, tested.

    Raises:
        RosaError: a method named in the options has no finished run, or a file is damaged.
    """
    options = options or TableOptions()
    baseline = find_method(study, options.baseline) if options.baseline else None
    shown = {find_method(study, method) for method in options.methods}
    overlap = load_overlap(study.folder)
    models = list(dict.fromkeys([*study.grid.get("models", []), *study.names("model")]))
    found = []
    for train_set in study.names("train_set"):
        tasks = {s.name: s for run in study.select(train_set=train_set) for s in run.scores}
        suites = list(dict.fromkeys(score.suite for score in tasks.values()))
        for suite in suites:
            rows, tested = {}, {}
            for model in models:
                rows[model] = method_runs(study, model, train_set, suite, shown)
                tested[model] = differences(study, model, train_set, suite, baseline)
            name = f"{train_set}-{suite}" if len(suites) > 1 else train_set
            own = tuple(score for score in tasks.values() if score.suite == suite)
            section = Section(study, train_set, suite, name, own, rows, options, overlap, tested)
            found.append(section)
    return found


def method_runs(
    study: StudyResults, model: str, train_set: str, suite: str, shown: set[str]
) -> list[MethodRuns]:
    """The methods in the grid's order, with their runs on `suite`; those in `shown`, if any."""
    entries = map(parse_method_entry, study.grid.get("methods", []))
    titles = {entry.name: entry.display_title for entry in entries}
    titles |= {run.method: run.title for run in study.runs}
    groups = by_method(study.select(model=model, train_set=train_set), suite)
    rows = []
    for method, title in titles.items():
        if shown and method not in shown:
            continue
        runs = groups.get(method, [])
        missing = _missing(study, RunGroup(model, train_set, method), [run.seed for run in runs])
        rows.append(MethodRuns(method, title, tuple(runs), missing))
    return rows


def _missing(study: StudyResults, group: RunGroup, done: list[int]) -> str:
    """Which seeds are missing, and why."""
    asked = study.grid.get("seeds") or study.names("seed")
    missing = [seed for seed in asked if seed not in done]
    if not missing:
        return ""
    errors = {failure["run"]: failure["error"] for failure in study.failures}
    reasons: dict[str, list[int]] = {}
    for seed in missing:
        error = errors.get(f"runs/{group.path}/seed-{seed}")
        reason = (
            f"failed: {shorten(error, LONGEST_ERROR, placeholder=' …')}" if error else "not run yet"
        )
        reasons.setdefault(reason, []).append(seed)
    texts = (
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {reason}"
        for reason, seeds in reasons.items()
    )
    return f"{len(asked) - len(missing)} of {len(asked)} seeds; {'; '.join(texts)}"
