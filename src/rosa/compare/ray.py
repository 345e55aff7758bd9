"""Jobs on a Ray cluster; the study's folder must be on a disk that every node sees.

    ray symmetric-run --address HEAD:6379 -- rosa compare GRID.yaml --engine ray

Without a running cluster, Ray starts one of this machine alone.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from rosa.compare.job import run_job
from rosa.compare.plan import Job
from rosa.errors import RosaError

STOP_SECONDS = 120


class RayEngine:
    """At most `workers` jobs at a time, each a Ray task with its own GPU where there are any."""

    def __init__(self, study: Path, workers: int | None, threads: int) -> None:
        """`workers`: None is as many as the cluster has GPUs, else cores for.

        Raises:
            RosaError: Ray is not installed or its cluster cannot be reached.
        """
        try:
            import ray
        except ImportError:
            raise RosaError(
                "--engine ray needs Ray: pip install 'rosa-peft[ray]', or use --engine local"
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
        # A process per run, as on one machine: nothing is left over from the run before.
        remote = ray.remote(num_cpus=threads, num_gpus=min(gpus, 1), max_calls=1, max_retries=0)
        self._task = remote(_body)
        self._running: dict[str, tuple[Job, Any]] = {}

    @property
    def has_room(self) -> bool:
        """Whether a job can be started now."""
        return len(self._running) < self.workers

    @property
    def running(self) -> list[Job]:
        """The jobs that are under way, oldest first."""
        return [job for job, _ in self._running.values()]

    def start(self, job: Job) -> None:
        """Hand the job to the cluster."""
        self._running[job.id] = (job, self._task.remote(os.getcwd(), self._study, job))

    def finished(self) -> list[tuple[Job, str | None]]:
        """The jobs that ended since the last call, with what killed their process if it was."""
        jobs = {reference: job for job, reference in self._running.values()}
        ended, _ = self._ray.wait(list(jobs), num_returns=len(jobs), timeout=0)
        for reference in ended:
            del self._running[jobs[reference].id]
        return [(jobs[reference], self._cause_of_death(reference)) for reference in ended]

    def stop(self) -> None:
        """Let every job save and end; what is still queued never starts."""
        references = [reference for _, reference in self._running.values()]
        for reference in references:
            self._ray.cancel(reference)  # as Ctrl-C would
        self._ray.wait(references, num_returns=len(references), timeout=STOP_SECONDS)

    def _cause_of_death(self, reference: Any) -> str | None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return f"Ray lost it: {str(error).strip().splitlines()[0]}"
        return None


def _body(working_folder: str, study: Path, job: Job) -> None:
    os.chdir(working_folder)  # a recipe's relative paths are those of the command
    run_job(study, job)
