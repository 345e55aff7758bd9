"""Each method's learning rate: the candidate with the lowest validation loss."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rosa.compare.job import read_status
from rosa.compare.plan import Job, RunGroup
from rosa.errors import RosaError
from rosa.train.run_folder import RunFolder


def validation_loss(folder: Path) -> float:
    """The best validation loss of a run, whose weights the run kept; infinite where it has none."""
    losses = [math.inf]
    metrics = RunFolder(folder).metrics
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            loss = json.loads(line).get("eval_loss")
            if loss is not None and math.isfinite(loss):
                losses.append(loss)
    return min(losses)


def tuning_losses(study: Path, jobs: Sequence[Job]) -> dict[float, float]:
    """Mean validation loss over seeds of each learning rate; infinite where a run failed."""
    losses: dict[float, list[float]] = {}
    for job in jobs:
        done = read_status(study, job.id).get("state") == "done"
        loss = validation_loss(study / job.id) if done else math.inf
        losses.setdefault(job.recipe.learning_rate, []).append(loss)
    return {rate: sum(values) / len(values) for rate, values in losses.items()}


def choose(losses: dict[float, float], reason: str) -> float:
    """The learning rate with the lowest loss; `reason` is told where there is none.

    Raises:
        RosaError: every candidate failed.
    """
    rate = min(losses, key=lambda r: losses[r])
    if not math.isfinite(losses[rate]):
        raise RosaError(f"no learning rate could be chosen, its tuning failed: {reason}")
    return rate


def with_rate(job: Job, rate: float) -> Job:
    """The job with its learning rate put in."""
    return replace(job, recipe=replace(job.recipe, learning_rate=rate), tuned=False)


def record(group: RunGroup, losses: dict[float, float], chosen: float | None) -> dict[str, Any]:
    """What `results.json` keeps of a group's tuning."""
    finite = {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in losses.items()}
    return {
        "model": group.model,
        "train_set": group.train_set,
        "method": group.method,
        "losses": finite,
        "chosen": chosen,
    }
