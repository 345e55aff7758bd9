"""A small grid, and an executor that ends its jobs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rosa.compare.grid import Grid, TrainingSet
from rosa.compare.job import Job, status_file
from rosa.train.recipe import dump_recipe

RATES = [1e-3, 1e-2]
LOSS = {("lora", 1e-3): 0.5, ("lora", 1e-2): 0.4, ("rosa", 1e-3): 0.2, ("rosa", 1e-2): 0.3}


def make_grid(**changes: Any) -> Grid:
    values: dict[str, Any] = {
        "output_dir": "runs/x",
        "models": ["rosa-tiny"],
        "methods": ["lora", "rosa"],
        "training_sets": {"toy": TrainingSet("tiny-sums", ["toy"])},
        "seeds": [1, 2],
    }
    return Grid(**{**values, **changes})


class FakeExecutor:
    """Ends every job at once; `fails`, ... `diverges`: which go wrong, by part of their id."""

    workers = 1

    def __init__(
        self,
        study: Path,
        fails: str = "nothing",
        dies: str = "nothing",
        stops: str = "nothing",
        diverges: str = "nothing",
    ) -> None:
        self.study, self.fails, self.dies, self.stops = study, fails, dies, stops
        self.diverges = diverges
        self.started: list[Job] = []
        self.running: list[Job] = []
        self.stopped = False

    def start(self, job: Job) -> None:
        self.started.append(job)
        self.running.append(job)

    def finished(self) -> list[tuple[Job, str | None]]:
        ended = [(job, self.end(job)) for job in self.running]
        self.running = []
        return ended

    def end(self, job: Job) -> str | None:
        if self.dies in job.id:
            return "its process was killed by SIGKILL"
        status = {"state": "done", "seconds": 2.0, "started": 0.0, "tasks": list(job.tasks)}
        folder = self.study / job.id
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(dump_recipe(job.recipe))
        if self.fails in job.id:
            status |= {"state": "failed", "error": "no luck"}
        elif self.diverges in job.id:
            status |= {"state": "diverged", "error": "the loss is not a finite number"}
        elif self.stops in job.id:
            status |= {"state": "stopped"}
        elif job.is_tuning:
            loss = LOSS[job.group.method, job.recipe.learning_rate]
            lines = [{"step": 1, "eval_loss": loss + 1}, {"step": 2, "eval_loss": loss}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        file = status_file(self.study, job.id)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(status))
        return None

    def stop(self) -> None:
        self.stopped = True
