"""Reads every finished run of a study into its results."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rosa.common.files import atomic_write
from rosa.compare.grid import Grid, MethodEntry
from rosa.compare.plan import Job, RunGroup
from rosa.compare.results import RESULTS, RunResult, StudyResults, to_json
from rosa.compare.schedule import OVER, Schedule
from rosa.compare.tuning import record, tuning_losses
from rosa.errors import RosaError
from rosa.evaluate.results import TaskScore
from rosa.methods.registry import load_method

VARIANT = "variant"


def gather(schedule: Schedule, grid: Grid, environment: dict[str, Any]) -> StudyResults:
    """The results of all runs that are done, in the grid's order."""
    entries = {entry.name: entry for entry in grid.entries}
    done = [j for j in schedule.jobs if not j.is_tuning and schedule.states[j.id] == "done"]
    order = {job.group: number for number, job in enumerate(schedule.jobs)}
    done.sort(key=lambda job: (order[job.group], grid.seeds.index(job.seed)))
    failures = [{"run": id, "error": error} for id, error in schedule.errors.items()]
    return StudyResults(
        schedule.study,
        tuple(read_run(schedule.study, job, entries[job.group.method]) for job in done),
        tuple(failures),
        tuple(gather_tuning(schedule)),
        environment,
        asdict(grid),
    )


def write(study: StudyResults) -> Path:
    """Replace `results.json` in one step."""
    file = study.folder / RESULTS
    atomic_write(file, json.dumps(to_json(study), indent=1) + "\n")
    return file


def read_run(study: Path, job: Job, entry: MethodEntry) -> RunResult:
    """One finished run.

    Raises:
        RosaError: a file of the run is missing or damaged.
    """
    folder = study / job.id
    try:
        costs = json.loads((folder / "costs.json").read_text(encoding="utf-8"))
        trainable, total = int(costs["trainable"]), int(costs["total"])
        scores = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
        trained = (folder / "recipe.yaml").read_text(encoding="utf-8")
        tasks = tuple(_task_score(values) for values in scores["tasks"])
        rate = _learning_rate(trained)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise RosaError(
            f"the run {folder} is damaged ({error}); delete status/{job.id}.json and the run's "
            "folder, and the same command does it again"
        ) from None
    return RunResult(
        **asdict(job.group),
        title=entry.shown,
        group=kind(entry),
        seed=job.seed,
        folder=job.id,
        learning_rate=rate,
        trainable=trainable,
        total=total,
        scores=tasks,
        costs={**costs, **_forgetting(folder)},
    )


def kind(entry: MethodEntry) -> str:
    """The method's own group; under a name of its own an entry is a variant of the method.

    PEFT's other methods are baselines as those of the paper are.
    """
    group = load_method(entry.name).group if entry.is_plain else VARIANT
    return "baseline" if group == "other" else group


def _task_score(values: dict[str, Any]) -> TaskScore:
    known = {key: v for key, v in values.items() if key in TaskScore.__dataclass_fields__}
    return TaskScore(**{**known, "seen_in_training": tuple(known["seen_in_training"])})


def _learning_rate(recipe: str) -> float:
    return float(yaml.safe_load(recipe)["learning_rate"])


def _forgetting(folder: Path) -> dict[str, Any]:
    file = folder / "evaluation" / "forgetting.json"
    if not file.is_file():
        return {}
    return {"forgetting": json.loads(file.read_text(encoding="utf-8"))["difference"]}


def gather_tuning(schedule: Schedule) -> list[dict[str, Any]]:
    """What the tuning runs that have ended say, and the rate that was chosen, if one was."""
    groups: dict[RunGroup, list[Job]] = {}
    for job in schedule.jobs:
        if job.is_tuning and schedule.states[job.id] in OVER:
            groups.setdefault(job.group, []).append(job)
    return [
        record(group, tuning_losses(schedule.study, jobs), _chosen(schedule, group))
        for group, jobs in groups.items()
    ]


def _chosen(schedule: Schedule, group: RunGroup) -> float | None:
    try:
        return schedule.rate(group)
    except RosaError:
        return None
