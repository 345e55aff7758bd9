"""The grid as a list of jobs: tuning runs first, then one run per model, set, method and seed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rosa.compare.budgets import matched_keys
from rosa.compare.grid import Grid, MethodEntry, TrainingSet
from rosa.errors import RosaError
from rosa.evaluate.options import EvaluationOptions
from rosa.methods.registry import load_method
from rosa.train.recipe import Recipe, check_recipe

ResolveRecipe = Callable[[dict[str, Any], str], Recipe]  # (keys, where they stand) -> recipe


@dataclass(frozen=True)
class RunGroup:
    """The runs that differ in nothing but their seed: one row of one table."""

    model: str
    train_set: str
    method: str

    @property
    def path(self) -> str:
        """Where the group lies inside a study's folder."""
        return "/".join(map(folder_name, (self.model, self.train_set, self.method)))

    def __str__(self) -> str:
        return f"{self.model} / {self.train_set} / {self.method}"


@dataclass(frozen=True)
class Job:
    """One run in a process of its own.

    Attributes:
        id: its folder inside the study's.
        recipe: what `rosa train` runs; `output_dir` is the run's folder.
        tasks: what is asked afterwards; none in a tuning run.
        tuned: the learning rate is still to be put in, from the group's tuning runs.
    """

    id: str
    group: RunGroup
    recipe: Recipe
    tasks: tuple[str, ...] = ()
    evaluate: EvaluationOptions | None = None
    tuned: bool = False
    threads: int = 1

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def is_tuning(self) -> bool:
        return self.evaluate is None


def plan(grid: Grid, resolve: ResolveRecipe) -> list[Job]:
    """Every job of the study, in the order they are started.

    One seed of every method comes before the second of any, so that a study that is stopped
    early holds fewer seeds rather than fewer methods.

    Raises:
        RosaError: a key or value of any run's recipe is wrong; nothing has been run.
    """
    grid.check()
    groups = {
        RunGroup(model, name, entry.name): entry
        for model in grid.models
        for name in grid.training_sets
        for entry in grid.entries
    }
    _refuse_shared_folders(list(groups))
    recipes = {group: _recipe(grid, group, entry, resolve) for group, entry in groups.items()}
    jobs = [job for group in groups for job in _tuning_jobs(grid, group, groups[group], resolve)]
    for seed in grid.seeds:
        jobs += [_run_job(grid, group, recipe, seed) for group, recipe in recipes.items()]
    for job in jobs:
        _check(job)
    return jobs


def folder_name(name: str) -> str:
    """A name as a folder's: `Qwen/Qwen2.5-7B` becomes `Qwen2.5-7B`."""
    return re.sub(r"[^\w.+-]+", "-", name.rstrip("/").split("/")[-1]).strip("-.") or "unnamed"


def _recipe(
    grid: Grid,
    group: RunGroup,
    entry: MethodEntry,
    resolve: ResolveRecipe,
    tuning: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of one group; its output_dir, seed and learning rate are still to come.

    `tuning` are the keys of its tuning runs alone, if it is for those.
    """
    train_set: TrainingSet = grid.training_sets[group.train_set]
    keys: dict[str, Any] = {"report_to": []}
    for layer in (grid.recipe, train_set.recipe, entry.recipe, tuning or {}):
        keys = _merged(keys, layer)
    selects_layers = "dls" in entry.recipe or load_method(str(entry.recipe["method"])).dls
    if not selects_layers:  # a shared `dls` is for the methods that have one
        keys["dls"] = None
    keys |= {"model": group.model, "data": train_set.data, "output_dir": grid.output_dir}
    if matched := matched_keys(grid, group.model, entry):
        keys["adapter"] = {**(keys.get("adapter") or {}), **matched}
    where = f"the method '{entry.name}'"
    return resolve(keys, where if tuning is None else f"tune.recipe, {where}")


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; the keys under `adapter` and `dls` are merged one by one."""
    merged = {**below, **above}
    for key in ("adapter", "dls"):
        if isinstance(below.get(key), dict) and isinstance(above.get(key), dict):
            merged[key] = {**below[key], **above[key]}
    return merged


def _tuning_jobs(
    grid: Grid, group: RunGroup, entry: MethodEntry, resolve: ResolveRecipe
) -> list[Job]:
    if grid.tune is None:
        return []
    recipe = _recipe(grid, group, entry, resolve, grid.tune.recipe)
    if not recipe.validation:
        raise RosaError("tune goes by the validation loss, and validation is 0; hold some rows out")
    jobs = []
    for rate in grid.tune.learning_rates:
        for seed in grid.tune.seeds:
            id = f"tuning/{group.path}/lr-{rate:g}-seed-{seed}"
            folder = str(Path(grid.output_dir) / id)
            own = replace(recipe, learning_rate=rate, seed=seed, output_dir=folder)
            jobs.append(Job(id, group, own, threads=grid.threads))
    return jobs


def _run_job(grid: Grid, group: RunGroup, recipe: Recipe, seed: int) -> Job:
    id = f"runs/{group.path}/seed-{seed}"
    own = replace(recipe, seed=seed, output_dir=str(Path(grid.output_dir) / id))
    tasks = tuple(grid.training_sets[group.train_set].tasks)
    return Job(id, group, own, tasks, grid.evaluate, grid.tune is not None, grid.threads)


def _check(job: Job) -> None:
    try:
        check_recipe(job.recipe)
    except RosaError as error:
        raise RosaError(f"the method '{job.group.method}': {error}") from None


def _refuse_shared_folders(groups: list[RunGroup]) -> None:
    seen: dict[str, RunGroup] = {}
    for group in groups:
        if group.path.lower() in seen:
            raise RosaError(
                f"'{group}' and '{seen[group.path.lower()]}' would share the folder {group.path}; "
                "give one of them another name"
            )
        seen[group.path.lower()] = group
