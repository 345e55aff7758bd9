"""Starts the jobs that are ready, survives those that fail, and resumes what a call before left."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rosa.compare.executors import Executor
from rosa.compare.job import ENDED, FINISHED, Job, RunGroup, by_group, read_status
from rosa.compare.tuning import choose_learning_rate, learning_rates_in_use
from rosa.errors import RosaError
from rosa.train.run_folder import RunFolder, recipe_difference

POLL_SECONDS = 0.5


class Schedule:
    """The jobs of a study and the state of each.

    A state is `waiting`, `running`, `done`, `diverged`, `failed` or, where the job was killed or
    stopped from outside, `interrupted`. The next call retries the last two, this one does not.
    """

    def __init__(self, study: Path, jobs: Sequence[Job]) -> None:
        """Raises RosaError where a finished run of the folder was made with another recipe."""
        self.study = study
        self.jobs = list(jobs)
        self.states = {job.id: self._state_on_disk(job) for job in jobs}
        self.errors: dict[str, str] = {}
        self.tuning = by_group(job for job in jobs if job.is_tuning)
        self._learning_rates = learning_rates_in_use(study, [j for j in jobs if j.is_tuned])

    def run(
        self, executor: Executor, on_end: Callable[[Job], None], on_poll: Callable[[], None]
    ) -> None:
        """Run what is not done; `on_end` gets every job that ended, `on_poll` is for a display."""
        try:
            while True:
                while self.count("running") < executor.workers and (job := self._next()):
                    self.states[job.id] = "running"
                    executor.start(job)
                if not self.count("running"):
                    break  # nothing runs and nothing can be started
                time.sleep(POLL_SECONDS)
                for job, crash in executor.finished():
                    self._record_end(job, crash)
                    on_end(job)
                on_poll()
        except BaseException:
            executor.stop()
            raise

    @property
    def waiting(self) -> list[Job]:
        """Jobs that are yet to be started, in their order."""
        return [job for job in self.jobs if self.states[job.id] == "waiting"]

    def count(self, *states: str) -> int:
        """How many jobs are in any of the states."""
        return sum(self.states[job.id] in states for job in self.jobs)

    def learning_rate(self, group: RunGroup) -> float:
        """The rate of the group's first run, else the best candidate; RosaError without one."""
        if group not in self._learning_rates:
            jobs = self.tuning[group]
            rate = choose_learning_rate(self.study, jobs, self.states, self.errors)
            self._learning_rates[group] = rate
        return self._learning_rates[group]

    def _state_on_disk(self, job: Job) -> str:
        status, tasks = read_status(self.study, job.id), list(job.tasks)
        if status.get("state") not in FINISHED:
            return "waiting"
        check_same_recipe(RunFolder(self.study / job.id), job)
        return status["state"] if status.get("tasks", tasks) == tasks else "waiting"

    def _next(self) -> Job | None:
        """The first waiting job that can be started, with its learning rate."""
        for job in self.waiting:
            if not job.is_tuned:
                return job
            if any(self.states[j.id] not in ENDED for j in self.tuning[job.group]):
                continue
            try:
                rate = self.learning_rate(job.group)
            except RosaError as error:
                self._fail(job, str(error))
            else:
                return replace(job, recipe=replace(job.recipe, learning_rate=rate))
        return None

    def _record_end(self, job: Job, crash: str | None) -> None:
        status = read_status(self.study, job.id)
        state = status.get("state")
        if crash is None and state in FINISHED:
            self.states[job.id] = state
        elif crash is None and state == "failed":
            self._fail(job, status.get("error", "no reason given"))
        else:
            stopped = "it was stopped from outside; rerun to resume it"
            reason = stopped if state == "stopped" else "it ended without a status"
            self._fail(job, crash or reason, "interrupted")

    def _fail(self, job: Job, error: str, state: str = "failed") -> None:
        self.states[job.id] = state
        self.errors[job.id] = error


def check_same_recipe(folder: RunFolder, job: Job) -> None:
    """Raises RosaError if a finished run had another recipe, learning rates of tuning aside."""
    if not folder.recipe.is_file():
        return  # reading its results reports what is missing
    before, recipe = folder.read_recipe(), job.recipe
    if job.is_tuned:
        recipe = replace(recipe, learning_rate=before.get("learning_rate", recipe.learning_rate))
    if key := recipe_difference(before, recipe):
        raise RosaError(
            f"the finished run {folder.path} had another {key}; give the method another name, or "
            f"delete that folder and status/{job.id}.json to run it again"
        )
