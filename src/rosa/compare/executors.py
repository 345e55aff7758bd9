"""Where the jobs of a study run: on this machine or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rosa.compare.job import Job
from rosa.compare.local import LocalExecutor
from rosa.compare.ray import RayExecutor


class Executor(Protocol):
    """Runs up to `workers` jobs at a time."""

    workers: int

    def start(self, job: Job) -> None:
        """Run the job in a process of its own."""

    def finished(self) -> list[tuple[Job, str | None]]:
        """The jobs that ended since the last call; with the reason where their process crashed."""

    def stop(self) -> None:
        """Let every running job save and end."""


def make_executor(name: str, study: Path, workers: int | None, threads: int) -> Executor:
    """The executor `local` or `ray`, for `workers` jobs at a time of `threads` CPU threads each.

    `workers` None is one job per GPU, or without GPUs as many as there are cores for.
    """
    return (RayExecutor if name == "ray" else LocalExecutor)(study, workers, threads)
