"""The grid as a list of jobs: tuning runs first, then one run per model, set, method and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path
from typing import Any

from rosa.compare.budgets import budget_keys
from rosa.compare.grid import Grid, MethodEntry, merge_keys
from rosa.compare.job import Job, RunGroup
from rosa.compare.tuning import tuning_jobs
from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.train.recipe import Recipe, check_recipe

ResolveRecipe = Callable[[dict[str, Any], str], Recipe]  # (keys, where they are given) -> recipe


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
    tune = grid.tune if grid.equal_time is None else None
    if tune is not None:
        for group, entry in groups.items():
            recipe = _recipe(grid, group, entry, resolve, tune.recipe)
            jobs += tuning_jobs(tune, group, recipe, grid.threads)
    recipes = {group: _recipe(grid, group, entry, resolve) for group, entry in groups.items()}
    if grid.equal_time is not None:
        recipes = {g: grid.equal_time.apply(g, recipe) for g, recipe in recipes.items()}
    for seed, (group, recipe) in product(grid.seeds, recipes.items()):
        id = f"runs/{group.path}/seed-{seed}"
        recipe = replace(recipe, output_dir=str(Path(recipe.output_dir) / id), seed=seed)
        tasks = tuple(grid.training_sets[group.train_set].tasks)
        is_tuned = tune is not None
        jobs.append(Job(id, group, recipe, tasks, grid.evaluate, is_tuned, grid.threads))
    for job in jobs:
        try:
            check_recipe(job.recipe)
        except RosaError as error:
            raise RosaError(f"the method '{job.group.method}': {error}") from None
    return jobs


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
