"""One job of a study, in a process of its own: train, evaluate, and write its status.

A job is `rosa train` and `rosa evaluate` on the run's folder: it resumes what an earlier attempt
left, and its recipe alone repeats it.

status/<id>.json   {"state": ..., ...}: training, evaluating, stopped, done, failed, or, of a tuning
                   run whose learning rate was too high, diverged
logs/<id>.txt      what they printed
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.common.files import atomic_write
from rosa.errors import DivergedError, RosaError, one_line
from rosa.evaluate.options import EvaluationOptions
from rosa.train.recipe import Recipe
from rosa.train.run_folder import RunFolder

FINISHED = ("done", "diverged")  # not run again; only a tuning run counts as diverged
ENDED = (*FINISHED, "failed", "interrupted")
STOP_SECONDS = 120  # in which a job that is stopped must have saved


@dataclass(frozen=True)
class RunGroup:
    """The runs that differ only in their seed: one row of a table."""

    model: str
    train_set: str
    method: str

    @property
    def path(self) -> str:
        """The group's folder inside a study's."""
        return "/".join(map(folder_name, (self.model, self.train_set, self.method)))


@dataclass(frozen=True)
class Job:
    """One run in a process of its own.

    Attributes:
        id: its folder inside the study's.
        recipe: what `rosa train` runs; `output_dir` is the run's folder.
        tasks: the tasks it is evaluated on; none for a tuning run.
        evaluate: the options of that evaluation; None for a tuning run.
        is_tuned: its learning rate is yet to be chosen from the group's tuning runs.
    """

    id: str
    group: RunGroup
    recipe: Recipe
    tasks: tuple[str, ...] = ()
    evaluate: EvaluationOptions | None = None
    is_tuned: bool = False
    threads: int = 1

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def is_tuning(self) -> bool:
        return self.evaluate is None


def by_group(jobs: Iterable[Job]) -> dict[RunGroup, list[Job]]:
    """The jobs of each group, in the order of the groups' first jobs."""
    groups: dict[RunGroup, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    return groups


def folder_name(name: str) -> str:
    """A name as a folder's: `Qwen/Qwen2.5-7B` becomes `Qwen2.5-7B`."""
    return re.sub(r"[^\w.+-]+", "-", name.rstrip("/").split("/")[-1]).strip("-.") or "unnamed"


def status_file(study: Path, job_id: str) -> Path:
    """The file with a job's status."""
    return study / "status" / f"{job_id}.json"


def read_status(study: Path, job_id: str) -> dict[str, Any]:
    """A job's latest status; empty before its first."""
    try:
        return json.loads(status_file(study, job_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def run_job(study: Path, job: Job) -> None:
    """The body of a job's process; never raises: an error goes into the job's status."""
    _redirect_output(study / "logs" / f"{job.id}.txt")
    started = time.time()
    try:
        state = _train_and_evaluate(study, job, started)
        _write_status(study, job, state, started, tasks=list(job.tasks))
    except RosaError as error:
        sys.stderr.write(f"failed: {error}\n")
        # A tuning run that diverges has an answer: its learning rate is too high.
        state = "diverged" if job.is_tuning and isinstance(error, DivergedError) else "failed"
        _write_status(study, job, state, started, error=str(error))
    except BaseException as error:  # the study continues without this run
        traceback.print_exc()
        reason = f"{type(error).__name__}: {one_line(error)}"
        _write_status(study, job, "failed", started, error=reason)


def _train_and_evaluate(study: Path, job: Job, started: float) -> str:
    import torch

    from rosa.evaluate.run import run_evaluation
    from rosa.train.run import train

    torch.set_num_threads(job.threads)
    folder = RunFolder(Path(job.recipe.output_dir))
    if not folder.finished:
        _write_status(study, job, "training", started)
        result = train(job.recipe, resume=folder.recipe.is_file(), log=print)
        if not result.finished:
            return "stopped"
    if job.evaluate is not None:
        _write_status(study, job, "evaluating", started)
        run_evaluation(
            folder.path,
            job.tasks,
            job.evaluate,
            out=folder.path / "evaluation",
            load_options={
                "quantization": job.recipe.quantization,
                "trust_remote_code": job.recipe.trust_remote_code,
            },
            log=print,
        )
    return "done"


def _write_status(study: Path, job: Job, state: str, started: float, **more: Any) -> None:
    file = status_file(study, job.id)
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "state": state,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": started,
        "seconds": round(time.time() - started, 1),
        **more,
    }
    atomic_write(file, json.dumps(record) + "\n")


def _redirect_output(log: Path) -> None:
    """Append everything that the process prints to `log`, native libraries included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    stream = log.open("a", encoding="utf-8", buffering=1)
    for descriptor in (1, 2):
        os.dup2(stream.fileno(), descriptor)
    sys.stdout = sys.stderr = stream
