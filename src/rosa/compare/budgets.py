"""`budget` in a grid: the adapter keys that bring a method nearest to another's parameters."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from rosa.budget.matching import match_budget
from rosa.budget.parameters import ParameterCount, count_parameters, load_model_config
from rosa.compare.grid import Grid, MethodEntry
from rosa.errors import RosaError

cached_model_config = cache(load_model_config)


def budget_keys(grid: Grid, model: str, entry: MethodEntry) -> dict[str, Any]:
    """The adapter keys that an entry's `budget` decides; empty if it has no budget.

    Raises:
        RosaError: the budget names no other method of the grid, or cannot be matched.
    """
    if entry.budget is None:
        return {}
    target = _target(grid, model, entry)
    try:
        return _match(model, str(entry.recipe["method"]), target, _adapter(entry))
    except RosaError as error:
        raise RosaError(f"methods: the budget of '{entry.name}': {error}") from None


@cache
def cached_count(model: str, method: str, adapter: str) -> ParameterCount:
    """The parameters of a method with these adapter keys (JSON), counted once per process."""
    return count_parameters(cached_model_config(model), method, json.loads(adapter))


@cache
def _match(model: str, method: str, target: int, adapter: str) -> dict[str, Any]:
    return match_budget(cached_model_config(model), method, target, json.loads(adapter))


def _target(grid: Grid, model: str, entry: MethodEntry) -> int:
    """The number of trainable parameters that an entry's budget asks for."""
    if isinstance(entry.budget, int) and not isinstance(entry.budget, bool) and entry.budget > 0:
        return entry.budget
    others = {other.name: other for other in grid.entries if other.budget is None}
    if entry.budget not in others:
        raise RosaError(
            f"methods: the budget of '{entry.name}' is {entry.budget!r}; give a number of "
            f"parameters, or one of {', '.join(others)}"
        )
    other = others[entry.budget]
    count = cached_count(model, str(other.recipe["method"]), _adapter(other))
    if count.trainable is None:
        raise RosaError(f"the budget of '{other.name}' on {model} is unknown: {count.note}")
    return count.trainable


def _adapter(entry: MethodEntry) -> str:
    return json.dumps(entry.recipe.get("adapter") or {})
