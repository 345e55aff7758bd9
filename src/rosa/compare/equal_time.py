"""`equal_time` in a grid: as many steps for every method as fit into the same time.

A run that stops at a time would depend on the machine's load and end in the middle of its
learning-rate schedule. So the time of a step is measured first, in a study of the same grid at
equal steps, and becomes `max_steps` here: schedules are complete, and each run can be repeated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from rosa.compare.job import RunGroup
from rosa.compare.results import RunResult, StudyResults
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run_folder import RunFolder


@dataclass(frozen=True)
class EqualTime:
    """The time that every method trains for: that of one method in an earlier study.

    Args:
        study: folder of the study that measured it: the same models, training sets and methods,
            at equal steps.
        method: the name of the method whose time it is.
    """

    study: str
    method: str

    def apply(self, group: RunGroup, recipe: Recipe) -> Recipe:
        """`recipe` with the learning rate that the group had in the study, and max_steps such that
        steps x (the group's seconds per step) = (the method's steps) x (its seconds per step).

        Raises:
            RosaError: the study lacks a run of the group or of the method.
        """
        own = self._measure(group.model, group.train_set, group.method)
        reference = self._measure(group.model, group.train_set, self.method)
        steps = max(1, round(own.steps * reference.seconds / own.seconds))
        return replace(recipe, max_steps=steps, learning_rate=own.learning_rate)

    def _measure(self, model: str, train_set: str, method: str) -> _Measured:
        results = _load(self.study)
        runs = results.select(model=model, train_set=train_set, method=method)
        if not runs:
            raise RosaError(
                f"equal_time: {self.study} has no finished run of '{method}' with {model} on "
                f"{train_set}; run the grid there first, without equal_time"
            )
        steps = RunFolder(results.folder / runs[0].folder).read_recipe().get("max_steps")
        if not isinstance(steps, int):
            raise RosaError(
                f"equal_time: the runs of {self.study} have no max_steps; measure them with it"
            )
        return _Measured(steps, median(map(_step_seconds, runs)), runs[0].learning_rate)


class _Measured(NamedTuple):
    """Of a method's runs: optimizer steps, seconds in them (median over seeds), learning rate."""

    steps: int
    seconds: float
    learning_rate: float


_load = functools.cache(StudyResults.load)


def _step_seconds(run: RunResult) -> float:
    """Seconds of a run's optimizer steps, without loading data, validation and saving."""
    return run.costs["tokens"] / run.costs["tokens_per_second"]
