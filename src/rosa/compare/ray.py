"""Jobs on a Ray cluster; the study's folder must be on a disk that every node sees.

    ray symmetric-run --address HEAD:6379 -- rosa compare GRID.yaml --executor ray

Without a running cluster, Ray starts one on this machine alone.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from rosa.compare.job import STOP_SECONDS, Job, run_job
from rosa.errors import RosaError


class RayExecutor:
    """An `Executor` on a Ray cluster: each job is a task, with its own GPU if there are any."""

    def __init__(self, study: Path, workers: int | None, threads: int) -> None:
        """Raises RosaError where Ray is not installed or its cluster cannot be reached."""
        try:
            import ray
        except ImportError:
            raise RosaError(
                "--executor ray needs Ray: pip install 'rosa-peft[ray]', or use --executor local"
            ) from None
        self._ray: Any = ray
        self._study = study.resolve()
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, OSError, RuntimeError) as error:
                raise RosaError(f"no Ray cluster can be reached: {error}") from None
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.workers = workers or gpus or max(1, cores // threads)
        # max_calls: a process per job, so that nothing is left over from the job before.
        remote = ray.remote(num_cpus=threads, num_gpus=min(gpus, 1), max_calls=1, max_retries=0)
        self._task = remote(_run)
        self._running: dict[Any, Job] = {}  # by reference

    def start(self, job: Job) -> None:
        self._running[self._task.remote(os.getcwd(), self._study, job)] = job

    def finished(self) -> list[tuple[Job, str | None]]:
        ended, _ = self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        return [(self._running.pop(ref), self._crash_reason(ref)) for ref in ended]

    def stop(self) -> None:
        for reference in self._running:
            # Raises KeyboardInterrupt in it, as Ctrl-C would; what is still queued never starts.
            self._ray.cancel(reference)
        count = len(self._running)
        self._ray.wait(list(self._running), num_returns=count, timeout=STOP_SECONDS)

    def _crash_reason(self, reference: Any) -> str | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return f"Ray lost it: {str(error).strip().splitlines()[0]}"
        return None


def _run(working_folder: str, study: Path, job: Job) -> None:
    os.chdir(working_folder)  # a recipe's relative paths are those of the command
    run_job(study, job)
