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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.common.files import atomic_write
from rosa.compare.grid import Evaluation
from rosa.compare.plan import Job
from rosa.errors import DivergedError, RosaError
from rosa.train.run_folder import RunFolder

if TYPE_CHECKING:
    from rosa.evaluate.requests import Workload
    from rosa.models.loading import Loaded


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
        _evaluate(job, job.evaluate, folder.path)
    return "done"


def prepare_questions(tasks: Sequence[str], options: Evaluation) -> list[Workload]:
    """What a run is asked.

    Raises:
        RosaError: an unknown task, bad test data, or an option that no evaluation would take.
    """
    from rosa.evaluate.run import check_options, prepare

    check_options(options.batch_size, options.num_beams, options.protocol)
    return prepare(
        list(tasks),
        data=options.data,
        limit=options.limit,
        max_new_tokens=options.max_new_tokens,
        prompt=options.prompt,
        num_fewshot=options.num_fewshot,
        fewshot_data=options.fewshot_data,
    )


def _evaluate(job: Job, options: Evaluation, adapter: Path) -> None:
    from rosa.evaluate.run import evaluate
    from rosa.models import identity as provenance
    from rosa.models import loading as models

    work = prepare_questions(job.tasks, options)
    loaded = models.load(
        str(adapter),
        quantization=job.recipe.quantization,
        trust_remote_code=job.recipe.trust_remote_code,
    )
    identity = provenance.identity(loaded)
    if options.forgetting is not None:
        _measure_forgetting(loaded, options.forgetting, adapter / "evaluation", identity)
    evaluate(
        loaded.model,
        loaded.tokenizer,
        work,
        out=adapter / "evaluation",
        batch_size=options.batch_size,
        limit=options.limit,
        num_beams=options.num_beams,
        protocol=options.protocol,
        full_responses=options.full_responses,
        run=identity,
        trained_on=provenance.trained_on(str(adapter)),
    )


def _measure_forgetting(loaded: Loaded, text: str, out: Path, identity: dict[str, Any]) -> None:
    from rosa.evaluate.folder import FORGETTING, EvaluationFolder
    from rosa.evaluate.forgetting import forgetting, text_for

    if not (out / FORGETTING).is_file():
        found = forgetting(loaded.model, loaded.tokenizer, text_for(loaded.base, text))
        EvaluationFolder(out).write_forgetting(found, identity)


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
