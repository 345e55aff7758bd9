"""One job in a process of its own: train, evaluate, and write its status.

A job is `rosa train` and `rosa evaluate` on the run's folder: it resumes what an earlier attempt
left, and its recipe alone repeats it.

status/<id>.json   {"state": ..., ...}: training, evaluating, stopped, done, failed, or, of a tuning
                   run whose learning rate was too high, diverged
logs/<id>.txt      what they printed
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from rosa.common.files import atomic_write
from rosa.compare.plan import Job
from rosa.errors import DivergedError, RosaError, one_line
from rosa.train.run_folder import RunFolder


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
