"""Starts what is ready, survives what fails, and gathers as runs finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import yaml

from rosa.errors import RosaError
from rosa.study.compare.job import read_status
from rosa.study.compare.plan import Group, Job
from rosa.study.compare.tuning import choose, tuning_losses, with_rate
from rosa.study.run_folder import RunFolder, first_difference

POLL_SECONDS = 0.5
OVER = ("done", "failed")


class Engine(Protocol):
    """Where jobs run: this machine or a cluster."""

    workers: int

    @property
    def has_room(self) -> bool: ...
    @property
    def running(self) -> list[Job]: ...
    def start(self, job: Job) -> None: ...
    def finished(self) -> list[tuple[Job, str | None]]: ...
    def stop(self) -> None: ...


class Schedule:
    """The jobs of a study and how each of them stands.

    A failed run is not tried again within a call; the next call of the same command does.
    """

    def __init__(self, study: Path, jobs: Sequence[Job]) -> None:
        """Raises RosaError where a finished run of the folder was made with another recipe."""
        self.study = study
        self.jobs = list(jobs)
        self.states = {job.id: self._state_on_disk(job) for job in jobs}
        self.errors: dict[str, str] = {}
        self._rates: dict[Group, float] = {}
        self._tuning: dict[Group, list[Job]] = {}
        for job in jobs:
            if job.is_tuning:
                self._tuning.setdefault(job.group, []).append(job)

    def run(self, engine: Engine, changed: Callable[[Job], None], tick: Callable[[], None]) -> None:
        """Run everything that is not done yet.

        Args:
            engine: where.
            changed: called with every job that ended.
            tick: called every half second, for a live display.
        """
        try:
            while self.waiting or engine.running:
                while engine.has_room and (job := self._next()) is not None:
                    self.states[job.id] = "running"
                    engine.start(job)
                if not engine.running:
                    break  # nothing runs and nothing can be started
                time.sleep(POLL_SECONDS)
                for job, death in engine.finished():
                    self._settle(job, death)
                    changed(job)
                tick()
        except BaseException:
            engine.stop()
            raise

    @property
    def waiting(self) -> list[Job]:
        """Jobs that are yet to be started, in their order."""
        return [job for job in self.jobs if self.states[job.id] == "waiting"]

    def count(self, *states: str) -> int:
        """How many jobs are in any of the states."""
        return sum(self.states[job.id] in states for job in self.jobs)

    def _state_on_disk(self, job: Job) -> str:
        if read_status(self.study, job.id).get("state") != "done":
            return "waiting"
        refuse_another_recipe(self.study / job.id, job)
        return "done"

    def _next(self) -> Job | None:
        """The first job whose learning rate is known, which is then put in."""
        for job in self.waiting:
            if not job.tuned:
                return job
            if not all(self.states[j.id] in OVER for j in self._tuning[job.group]):
                continue
            try:
                return with_rate(job, self.rate(job.group))
            except RosaError as error:
                self._fail(job, str(error))
        return None

    def rate(self, group: Group) -> float:
        """The learning rate that the group's tuning runs chose.

        Raises:
            RosaError: all of them failed.
        """
        if group not in self._rates:
            losses = tuning_losses(self.study, self._tuning[group])
            self._rates[group] = choose(losses, group)
        return self._rates[group]

    def _settle(self, job: Job, death: str | None) -> None:
        status = read_status(self.study, job.id)
        if death is None and status.get("state") in ("done", "stopped"):
            self.states[job.id] = status["state"]
        else:
            self._fail(job, death or status.get("error", "it left no word"))

    def _fail(self, job: Job, error: str) -> None:
        self.states[job.id] = "failed"
        self.errors[job.id] = error


def refuse_another_recipe(folder: Path, job: Job) -> None:
    """A finished run must be the one that the grid asks for.

    Raises:
        RosaError: its recipe differs, by more than the learning rate that tuning puts in.
    """
    recipe = RunFolder(folder).recipe
    if not recipe.is_file():
        return  # `gather` says what is missing
    before = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    now = asdict(job.recipe)
    if job.tuned:
        now.pop("learning_rate")
    if key := first_difference(before, now):
        raise RosaError(
            f"the finished run {folder} had another {key}; give the method another name, or "
            "delete that folder and its status to run it anew"
        )
