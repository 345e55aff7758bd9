"""Jobs side by side on this machine: one process each, one GPU each where there are any.

A job that is killed for memory takes no other with it. Where the system supports it, the processes
are forked from a server that has imported the libraries once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

from rosa.compare.job import STOP_SECONDS, Job, run_job

# All of our modules that a run imports, so that an update of the package in the middle of a study
# does not mix two versions.
PRELOAD = [
    "rosa.compare.local",
    "rosa.evaluate.run",
    "rosa.models.loading",
    "rosa.models.identity",
    "rosa.train.run",
]


class LocalExecutor:
    """An `Executor` on this machine."""

    def __init__(self, study: Path, workers: int | None, threads: int) -> None:
        gpus = visible_gpus()
        self.workers = workers = workers or len(gpus) or max(1, usable_cores() // threads)
        self._study = study
        self._free = [gpus[i % len(gpus)] if gpus else None for i in range(workers)]
        self._running: list[tuple[Job, Any, str | None]] = []
        can_fork = "forkserver" in multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context("forkserver" if can_fork else "spawn")
        if can_fork:
            self._context.set_forkserver_preload(PRELOAD)

    def start(self, job: Job) -> None:
        gpu = self._free.pop()
        process = self._context.Process(target=_run, args=(self._study, job, gpu))
        process.start()
        self._running.append((job, process, gpu))

    def finished(self) -> list[tuple[Job, str | None]]:
        ended = [entry for entry in self._running if not entry[1].is_alive()]
        self._running = [entry for entry in self._running if entry not in ended]
        self._free += [gpu for _, _, gpu in ended]
        return [(job, _crash_reason(process.exitcode)) for job, process, _ in ended]

    def stop(self) -> None:
        alive = [process for _, process, _ in self._running if process.is_alive()]
        for process in alive:
            os.kill(process.pid, signal.SIGTERM)
        for process in alive:
            process.join(STOP_SECONDS)
            if process.is_alive():
                process.kill()


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i in range(torch.cuda.device_count())]


def usable_cores() -> int:
    """The cores this process may use; a cluster's scheduler can allow fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(study: Path, job: Job, gpu: str | None) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the study alone, which then stops its runs once, not twice
    _stop_with_parent()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    run_job(study, job)


def _stop_with_parent() -> None:
    """Let this process save and end once the study's process is gone, even if that was killed."""
    # Joined by a pipe: `os.getppid` would be the fork server, which lives on with its processes.
    parent = multiprocessing.parent_process()

    def wait_for_parent() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def _crash_reason(exit_code: int) -> str | None:
    if exit_code == 0:
        return None
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"its process was killed by {name}{' (out of memory?)' * (name == 'SIGKILL')}"
    return f"its process exited with code {exit_code}"
