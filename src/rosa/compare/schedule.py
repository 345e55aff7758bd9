"""Starts what is ready, survives what fails, and gathers as runs finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import yaml

from rosa.compare.job import read_status
from rosa.compare.plan import Job, RunGroup
from rosa.compare.tuning import choose, tuning_losses, with_rate
from rosa.errors import RosaError
from rosa.train.run_folder import RunFolder, first_difference

POLL_SECONDS = 0.5
DONE = ("done", "diverged")  # not done again; only a tuning run counts as diverged
OVER = (*DONE, "failed")


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
        self._cut_off: set[str] = set()  # failed by no fault of their own
        self._tuning: dict[RunGroup, list[Job]] = {}
        for job in jobs:
            if job.is_tuning:
                self._tuning.setdefault(job.group, []).append(job)
        self._rates = rates_in_use(study, [job for job in jobs if job.tuned])

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
        status, asked = read_status(self.study, job.id), list(job.tasks)
        if status.get("state") not in DONE:
            return "waiting"
        refuse_another_recipe(self.study / job.id, job)
        return status["state"] if status.get("tasks", asked) == asked else "waiting"

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

    def rate(self, group: RunGroup) -> float:
        """The learning rate of the group's runs: the one they began with, else the best.

        Raises:
            RosaError: all tuning runs failed, or one was killed before it could say.
        """
        if group not in self._rates:
            for job in self._tuning[group]:
                if self.states[job.id] not in OVER or job.id in self._cut_off:
                    raise RosaError(
                        f"no learning rate could be chosen, {job.id} did not come to its end "
                        f"({self.errors.get(job.id, 'not run yet')})"
                    )
            losses = tuning_losses(self.study, self._tuning[group])
            self._rates[group] = choose(losses, self._reason(group))
        return self._rates[group]

    def _reason(self, group: RunGroup) -> str:
        """Why the first of the group's tuning runs that failed did so."""
        errors = [self.errors[job.id] for job in self._tuning[group] if job.id in self.errors]
        return errors[0] if errors else "no finite validation loss"

    def _settle(self, job: Job, death: str | None) -> None:
        status = read_status(self.study, job.id)
        state = status.get("state")
        if death is None and state in DONE:
            self.states[job.id] = state
        elif death is None and state == "failed":
            self._fail(job, status.get("error", "it left no word"))
        else:
            self._cut_off.add(job.id)
            stopped = "something else stopped it; the same command goes on with it"
            self._fail(job, death or (stopped if state == "stopped" else "it left no word"))

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
    before = _read(recipe)
    now = asdict(job.recipe)
    if job.tuned:
        now.pop("learning_rate")
    if key := first_difference(before, now):
        raise RosaError(
            f"the finished run {folder} had another {key}; give the method another name, or "
            "delete that folder and its status to run it anew"
        )


def rates_in_use(study: Path, jobs: Sequence[Job]) -> dict[RunGroup, float]:
    """The learning rates that runs were begun with, which their group keeps.

    A tuning run that failed and is done again may change the choice, and no table mixes two.
    """
    rates: dict[RunGroup, float] = {}
    for job in jobs:
        recipe = RunFolder(study / job.id).recipe
        if job.group not in rates and recipe.is_file():
            rates[job.group] = float(_read(recipe)["learning_rate"])
    return rates


def _read(recipe: Path) -> dict[str, Any]:
    try:
        values = dict(yaml.safe_load(recipe.read_text(encoding="utf-8")))
        float(values["learning_rate"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        raise RosaError(
            f"{recipe} is damaged; delete {recipe.parent}, and the same command does the run again"
        ) from None
    return values
