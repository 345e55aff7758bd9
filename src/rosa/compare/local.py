"""Jobs side by side on this machine: one process each, one GPU each where there are any.

Each run has a process of its own, so one that is killed for memory takes nothing with it. Where
the system has it, the processes are forked from a server that imported the libraries once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from rosa.compare.job import run_job, stop_with_parent
from rosa.compare.plan import Job

# All that a run imports of ours, so that an update of the package in the middle of a study does
# not mix two versions.
PRELOAD = [
    "rosa.compare.job",
    "rosa.compare.local",
    "rosa.evaluate.run",
    "rosa.models.loading",
    "rosa.models.identity",
    "rosa.train.run",
]
STOP_SECONDS = 120


class LocalEngine:
    """`workers` jobs at a time; `start`, then `finished` until the job comes out of it."""

    def __init__(self, study: Path, workers: int | None, threads: int) -> None:
        """`workers`: None is one per GPU, else as many as there are cores for."""
        devices = visible_gpus()
        cores = usable_cores()
        self.workers = workers = workers or len(devices) or max(1, cores // threads)
        self._study = study
        self._free = [devices[i % len(devices)] if devices else None for i in range(workers)]
        self._running: dict[str, tuple[Job, Any, str | None]] = {}
        methods = multiprocessing.get_all_start_methods()
        self._context: Any = multiprocessing.get_context(
            "forkserver" if "forkserver" in methods else "spawn"
        )
        if "forkserver" in methods:
            self._context.set_forkserver_preload(PRELOAD)

    @property
    def has_room(self) -> bool:
        """Whether a job can be started now."""
        return bool(self._free)

    @property
    def running(self) -> list[Job]:
        """The jobs that are under way, oldest first."""
        return [job for job, _, _ in self._running.values()]

    def start(self, job: Job) -> None:
        """Run the job in a new process."""
        device = self._free.pop()
        process = self._context.Process(target=_body, args=(self._study, job, device))
        process.start()
        self._running[job.id] = (job, process, device)

    def finished(self) -> list[tuple[Job, str | None]]:
        """The jobs that ended since the last call, with what killed their process if it was."""
        ended = []
        for job, process, device in list(self._running.values()):
            if process.is_alive():
                continue
            process.join()
            del self._running[job.id]
            self._free.append(device)
            ended.append((job, _cause_of_death(process.exitcode)))
        return ended

    def stop(self) -> None:
        """Let every job save and end."""
        for _, process, _ in self._running.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)
        for _, process, _ in self._running.values():
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
    """The cores that this process may use, which a scheduler can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _body(study: Path, job: Job, device: str | None) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C ends the study, which then tells its runs to save: once, not twice
    stop_with_parent()
    run_job(study, job, device)


def _cause_of_death(exit_code: int) -> str | None:
    if exit_code == 0:
        return None
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ": out of memory?" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {exit_code}"
