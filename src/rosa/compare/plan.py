"""The grid as a list of jobs: tuning runs first, then one run per model, set, method and seed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from rosa.compare.budgets import budget_keys
from rosa.compare.grid import Grid, MethodEntry, merge_keys
from rosa.errors import RosaError
from rosa.evaluate.options import EvaluationOptions
from rosa.methods.registry import load_method
from rosa.train.recipe import Recipe, check_recipe

ResolveRecipe = Callable[[dict[str, Any], str], Recipe]  # (keys, where they are given) -> recipe


@dataclass(frozen=True)
class RunGroup:
    """The runs that differ only in their seed: one row of a table."""

    model: str
    train_set: str
    method: str

    @property
    def path(self) -> str:
        """The group's folder inside a study's."""
        return "/".join(map(folder_name, (self.model, self.train_set, self.method)))


@dataclass(frozen=True)
class Job:
    """One run in a process of its own.

    Attributes:
        id: its folder inside the study's.
        recipe: what `rosa train` runs; `output_dir` is the run's folder.
        tasks: the tasks it is evaluated on; none for a tuning run.
        evaluate: the options of that evaluation; None for a tuning run.
        is_tuned: its learning rate is yet to be chosen from the group's tuning runs.
    """

    id: str
    group: RunGroup
    recipe: Recipe
    tasks: tuple[str, ...] = ()
    evaluate: EvaluationOptions | None = None
    is_tuned: bool = False
    threads: int = 1

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def is_tuning(self) -> bool:
        return self.evaluate is None


def by_group(jobs: Iterable[Job]) -> dict[RunGroup, list[Job]]:
    """The jobs of each group, in the order of the groups' first jobs."""
    groups: dict[RunGroup, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    return groups


def plan(grid: Grid, resolve: ResolveRecipe) -> list[Job]:
    """Every job of the study, in the order they are started.

    The first seed of every method comes before the second of any, so that a study that is stopped
    early has fewer seeds rather than fewer methods.

    Raises:
        RosaError: a key or value of any run's recipe is wrong; nothing has been run.
    """
    grid.check()
    groups = {
        RunGroup(model, train_set, entry.name): entry
        for model in grid.models
        for train_set in grid.training_sets
        for entry in grid.entries
    }
    _check_folders(groups)
    jobs = []
    if grid.tune is not None:
        for group, entry in groups.items():
            recipe = _recipe(grid, group, entry, resolve, grid.tune.recipe)
            if not recipe.validation:
                raise RosaError(
                    "tune compares validation losses, and validation is 0; hold out some rows"
                )
            for rate, seed in product(grid.tune.learning_rates, grid.tune.seeds):
                id = f"tuning/{group.path}/lr-{rate:g}-seed-{seed}"
                own = _own(recipe, grid, id, seed, learning_rate=rate)
                jobs.append(Job(id, group, own, threads=grid.threads))
    recipes = {group: _recipe(grid, group, entry, resolve) for group, entry in groups.items()}
    for seed, (group, recipe) in product(grid.seeds, recipes.items()):
        id = f"runs/{group.path}/seed-{seed}"
        tasks = tuple(grid.training_sets[group.train_set].tasks)
        own = _own(recipe, grid, id, seed)
        is_tuned = grid.tune is not None
        jobs.append(Job(id, group, own, tasks, grid.evaluate, is_tuned, grid.threads))
    for job in jobs:
        try:
            check_recipe(job.recipe)
        except RosaError as error:
            raise RosaError(f"the method '{job.group.method}': {error}") from None
    return jobs


def _own(recipe: Recipe, grid: Grid, id: str, seed: int, **keys: Any) -> Recipe:
    return replace(recipe, output_dir=str(Path(grid.output_dir) / id), seed=seed, **keys)


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
    """The recipe of a group, without output_dir, seed and learning rate.

    `tuning` are the keys of its tuning runs alone, if it is for those.
    """
    train_set = grid.training_sets[group.train_set]
    keys: dict[str, Any] = {"report_to": []}
    for layer in (grid.recipe, train_set.recipe, entry.recipe, tuning or {}):
        keys = merge_keys(keys, layer)
    selects_layers = "dls" in entry.recipe or load_method(str(entry.recipe["method"])).dls
    if not selects_layers:  # a shared `dls` is for the methods that have one
        keys["dls"] = None
    keys |= {"model": group.model, "data": train_set.data, "output_dir": grid.output_dir}
    if matched := budget_keys(grid, group.model, entry):
        keys["adapter"] = {**(keys.get("adapter") or {}), **matched}
    where = f"the method '{entry.name}'"
    return resolve(keys, where if tuning is None else f"tune.recipe, {where}")


def _check_folders(groups: Iterable[RunGroup]) -> None:
    seen: dict[str, RunGroup] = {}
    for group in groups:
        other = seen.setdefault(group.path.lower(), group)
        if other != group:
            raise RosaError(
                f"{astuple(group)} and {astuple(other)} would share the folder {group.path}; "
                "rename one of them"
            )
