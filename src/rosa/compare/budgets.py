"""`budget:` in a grid: the adapter keys that bring a method nearest to another's parameters."""

from __future__ import annotations

from functools import cache
from typing import Any

from rosa.budget.matching import match_budget
from rosa.budget.parameters import count_parameters, load_model_config
from rosa.compare.grid import Grid, MethodEntry
from rosa.errors import RosaError


def matched_keys(grid: Grid, model: str, entry: MethodEntry) -> dict[str, Any]:
    """The keys of the entry's adapter that its `budget` decides; none where it has no budget.

    Raises:
        RosaError: the budget names no other method of the grid, or cannot be matched.
    """
    if entry.budget is None:
        return {}
    target = _target(grid, model, entry)
    method, given = str(entry.recipe["method"]), entry.recipe.get("adapter") or {}
    try:
        return _match(model, method, target, tuple(sorted(given.items(), key=str)))
    except RosaError as error:
        raise RosaError(f"methods: the budget of '{entry.name}': {error}") from None


def _target(grid: Grid, model: str, entry: MethodEntry) -> int:
    """Trainable parameters that the entry's budget means."""
    if isinstance(entry.budget, int) and not isinstance(entry.budget, bool) and entry.budget > 0:
        return entry.budget
    others = {other.name: other for other in grid.entries if other.budget is None}
    if entry.budget not in others:
        raise RosaError(
            f"methods: the budget of '{entry.name}' is {entry.budget!r}; give a number of "
            f"parameters, or one of {', '.join(others)}"
        )
    other = others[entry.budget]
    adapter = tuple(sorted((other.recipe.get("adapter") or {}).items(), key=str))
    return _count(model, str(other.recipe["method"]), adapter)


# Plan, dry run and table ask the same for every data set, seed and candidate of the tuning.
@cache
def _shape(model: str) -> Any:
    return load_model_config(model)


@cache
def _count(model: str, method: str, adapter: tuple[tuple[str, Any], ...]) -> int:
    found = count_parameters(_shape(model), method, dict(adapter))
    if found.trainable is None:
        raise RosaError(f"a budget cannot be that of {method} on {model}: {found.note}")
    return found.trainable


@cache
def _match(
    model: str, method: str, target: int, given: tuple[tuple[str, Any], ...]
) -> dict[str, Any]:
    return match_budget(_shape(model), method, target, dict(given))
