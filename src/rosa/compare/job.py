"""One job in a process of its own: train, then evaluate, and say how far it is.

A job is nothing but `rosa train` and `rosa evaluate` on the run's folder: it goes on where an
earlier attempt stopped, and its recipe alone repeats it.

status/<id>.json   {"state": ..., ...}: training, evaluating, stopped, done, failed, or, of a tuning
                   run whose learning rate was too high, diverged
logs/<id>.txt      what the commands printed
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rosa.common.files import atomic_write
from rosa.compare.plan import Job
from rosa.errors import DivergedError, RosaError
from rosa.train.run_folder import RunFolder


def status_file(study: Path, job_id: str) -> Path:
    """Where a job says how far it is."""
    return study / "status" / f"{job_id}.json"


def log_file(study: Path, job_id: str) -> Path:
    """Where a job's output goes."""
    return study / "logs" / f"{job_id}.txt"


def read_status(study: Path, job_id: str) -> dict[str, Any]:
    """The last word of a job; empty before its first."""
    try:
        return json.loads(status_file(study, job_id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def run_job(study: Path, job: Job, device: str | None = None) -> None:
    """The body of a job's process; never raises: what went wrong stands in its status.

    Args:
        study: the study's folder.
        job: what to run.
        device: index of the GPU to see; None leaves the choice to the machine.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    log = log_file(study, job.id)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    with log.open("a", encoding="utf-8", buffering=1) as stream, _output_to(stream):
        try:
            state = _train_and_evaluate(study, job, started)
            _say(study, job, state, started, tasks=list(job.tasks))
        except RosaError as error:
            sys.stderr.write(f"failed: {error}\n")
            # To a tuning run that is an answer: this rate is too high.
            diverged = job.is_tuning and isinstance(error, DivergedError)
            _say(study, job, "diverged" if diverged else "failed", started, error=str(error))
        except BaseException as error:  # the study goes on without this run
            traceback.print_exc()
            kind, reason = type(error).__name__, " ".join(str(error).split())[:300]
            _say(study, job, "failed", started, error=f"{kind}: {reason}")


def _train_and_evaluate(study: Path, job: Job, started: float) -> str:
    import torch

    from rosa.evaluate.run import run_evaluation
    from rosa.train.run import train

    torch.set_num_threads(job.threads)
    folder = RunFolder(Path(job.recipe.output_dir))
    if not folder.finished:
        _say(study, job, "training", started)
        result = train(job.recipe, resume=folder.recipe.is_file(), log=_line)
        if not result.finished:
            return "stopped"
    if job.evaluate is not None:
        _say(study, job, "evaluating", started)
        run_evaluation(
            folder.path,
            job.tasks,
            job.evaluate,
            out=folder.path / "evaluation",
            load_options={
                "quantization": job.recipe.quantization,
                "trust_remote_code": job.recipe.trust_remote_code,
            },
            log=_line,
        )
    return "done"


def _say(study: Path, job: Job, state: str, started: float, **more: Any) -> None:
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


def _line(text: str) -> None:
    sys.stdout.write(text + "\n")


@contextlib.contextmanager
def _output_to(stream: Any) -> Iterator[None]:
    """Everything the process prints, and its libraries below Python, goes to `stream`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def stop_with_parent() -> None:
    """Saves and ends this process once the one that started it is gone, however it went."""
    # The study, by a pipe that closes with it. `os.getppid` would be the server that forked this
    # process, which lives as long as any process that it forked.
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
