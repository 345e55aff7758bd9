"""Each method's learning rate: the candidate with the lowest validation loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rosa.common.files import read_jsonl
from rosa.compare.job import read_status
from rosa.compare.plan import Job, RunGroup
from rosa.errors import RosaError
from rosa.train.run_folder import RunFolder


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


def best_learning_rate(losses: dict[float, float], reason: str) -> float:
    """The learning rate with the lowest loss; raises RosaError with `reason` if all failed."""
    rate = min(losses, key=lambda candidate: losses[candidate])
    if not math.isfinite(losses[rate]):
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
