"""The learning-rate search: each method gets the candidate with the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from rosa.common.files import read_jsonl
from rosa.compare.job import FINISHED, Job, RunGroup, read_status
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run_folder import RunFolder


@dataclass
class LearningRateSearch:
    """The learning rates each method may choose from; the lowest validation loss wins.

    Args:
        learning_rates: candidates, the same for every method.
        seeds: seeds of the tuning runs; not those of the study, whose test scores stay unseen.
        recipe: recipe keys of the tuning runs alone, such as fewer steps.
    """

    learning_rates: list[float]
    seeds: list[int] = field(default_factory=lambda: [1])
    recipe: dict[str, Any] = field(default_factory=dict)


def tuning_jobs(
    search: LearningRateSearch, group: RunGroup, recipe: Recipe, threads: int
) -> list[Job]:
    """A group's tuning runs: `recipe` with every learning rate and seed of the search.

    Raises RosaError if the recipe holds out no rows for validation.
    """
    if not recipe.validation:
        raise RosaError("tune compares validation losses, and validation is 0; hold out some rows")
    jobs = []
    for rate, seed in product(search.learning_rates, search.seeds):
        id = f"tuning/{group.path}/lr-{rate:g}-seed-{seed}"
        folder = str(Path(recipe.output_dir) / id)
        run = replace(recipe, output_dir=folder, seed=seed, learning_rate=rate)
        jobs.append(Job(id, group, run, threads=threads))
    return jobs


def tuning_losses(study: Path, jobs: Sequence[Job]) -> dict[float, float]:
    """Best validation loss of each learning rate, averaged over seeds; infinite if a run failed."""
    losses: dict[float, list[float]] = {}
    for job in jobs:
        done = read_status(study, job.id).get("state") == "done"
        records = read_jsonl(RunFolder(study / job.id).metrics) if done else []
        values = [record.get("eval_loss", math.inf) for record in records]
        best = min(filter(math.isfinite, values), default=math.inf)
        losses.setdefault(job.recipe.learning_rate, []).append(best)
    return {rate: fmean(values) for rate, values in losses.items()}


def choose_learning_rate(
    study: Path, jobs: Sequence[Job], states: Mapping[str, str], errors: Mapping[str, str]
) -> float:
    """The learning rate with the lowest loss among a group's tuning runs.

    `states` and `errors` are a `Schedule`'s. Raises RosaError if all failed or one is unfinished.
    """
    for job in jobs:
        if states[job.id] not in (*FINISHED, "failed"):
            raise RosaError(
                f"no learning rate could be chosen, the tuning run {job.id} has not finished "
                f"({errors.get(job.id, 'not started')})"
            )
    losses = tuning_losses(study, jobs)
    rate = min(losses, key=lambda candidate: losses[candidate])
    if not math.isfinite(losses[rate]):
        reasons = (errors[job.id] for job in jobs if job.id in errors)
        reason = next(reasons, "no finite validation loss")
        raise RosaError(f"no learning rate could be chosen, all tuning runs failed: {reason}")
    return rate


def trained_learning_rate(folder: RunFolder) -> float:
    """The learning rate of a started run; raises RosaError if its recipe is damaged."""
    rate = folder.read_recipe().get("learning_rate")
    if not isinstance(rate, (int, float)):
        raise RosaError(f"{folder.recipe} is damaged: its learning_rate is {rate!r}")
    return float(rate)


def learning_rates_in_use(study: Path, jobs: Sequence[Job]) -> dict[RunGroup, float]:
    """The learning rate of each group that has a run already, which its other runs must share.

    A failed tuning run that is repeated may change the choice, and no table may mix the two.
    """
    rates: dict[RunGroup, float] = {}
    for job in jobs:
        folder = RunFolder(study / job.id)
        if job.group not in rates and folder.recipe.is_file():
            rates[job.group] = trained_learning_rate(folder)
    return rates
