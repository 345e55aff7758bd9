"""Reads every finished run of a study into its results."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rosa.compare.grid import Grid, MethodEntry
from rosa.compare.job import ENDED, Job, by_group
from rosa.compare.results import RunResult, StudyResults, read_score
from rosa.compare.schedule import Schedule
from rosa.compare.tuning import trained_learning_rate, tuning_losses
from rosa.errors import RosaError
from rosa.train.run_folder import RunFolder


def gather_results(schedule: Schedule, grid: Grid, environment: dict[str, Any]) -> StudyResults:
    """The results of all runs that are done, in the grid's order."""
    entries = {entry.name: entry for entry in grid.entries}
    runs = (job for jobs in by_group(schedule.jobs).values() for job in jobs if not job.is_tuning)
    done = [job for job in runs if schedule.states[job.id] == "done"]
    return StudyResults(
        schedule.study,
        tuple(read_run(schedule.study, job, entries[job.group.method]) for job in done),
        tuple({"run": id, "error": error} for id, error in schedule.errors.items()),
        tuple(gather_tuning(schedule)),
        environment,
        asdict(grid),
    )


def read_run(study: Path, job: Job, entry: MethodEntry) -> RunResult:
    """One finished run.

    Raises:
        RosaError: a file of the run is missing or damaged.
    """
    folder = study / job.id
    forgetting = folder / "evaluation" / "forgetting.json"
    try:
        costs = _read_json(folder / "costs.json")
        scores = _read_json(folder / "evaluation" / "results.json")["tasks"]
        if forgetting.is_file():
            costs["forgetting"] = _read_json(forgetting)["difference"]
        return RunResult(
            **asdict(job.group),
            title=entry.display_title,
            group=entry.group,
            seed=job.seed,
            folder=job.id,
            learning_rate=trained_learning_rate(RunFolder(folder)),
            trainable=int(costs["trainable"]),
            total=int(costs["total"]),
            scores=tuple(map(read_score, scores)),
            costs=costs,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RosaError(
            f"the run {folder} is damaged ({error}); delete status/{job.id}.json and the run's "
            "folder, and rerun to repeat it"
        ) from None


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def gather_tuning(schedule: Schedule) -> list[dict[str, Any]]:
    """The validation losses of the tuning runs that ended, and the chosen learning rate if any."""
    found = []
    for group, jobs in schedule.tuning.items():
        ended = [job for job in jobs if schedule.states[job.id] in ENDED]
        if not ended:
            continue
        losses = tuning_losses(schedule.study, ended)
        finite = {f"{r:g}": loss if math.isfinite(loss) else None for r, loss in losses.items()}
        chosen = None
        with suppress(RosaError):  # not chosen yet, or never
            chosen = schedule.learning_rate(group)
        found.append({**asdict(group), "losses": finite, "chosen": chosen})
    return found
