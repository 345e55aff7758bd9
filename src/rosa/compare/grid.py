"""A grid: models x methods x training sets x seeds, as typed YAML keys (guides/comparing.md)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rosa.compare.equal_time import EqualTime
from rosa.compare.tuning import LearningRateSearch
from rosa.errors import RosaError
from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.tasks import resolve_tasks
from rosa.methods.registry import load_method

STUDY_OPTIONS = EvaluationOptions(full_responses=True)  # reports show complete responses
ENTRY_KEYS = ("name", "title", "budget")  # the rest of a method's entry are keys of its recipe
# Recipe keys that a grid has keys of its own for.
RECIPE_KEYS_OF_GRID = {
    "model": "models",
    "method": "methods",
    "data": "training_sets",
    "output_dir": "output_dir",
    "seed": "seeds",
}


@dataclass
class TrainingSet:
    """Rows to train on, and the tasks that a model trained on them is asked.

    Args:
        data: as a recipe's `data`.
        tasks: tasks, groups or task files, as `rosa evaluate --tasks`.
        recipe: recipe keys of the runs on this set alone.
        sha256: hash of the one local file that `data` names; null checks nothing.
    """

    data: str | list[str]
    tasks: list[str]
    recipe: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None

    @property
    def sources(self) -> list[str]:
        """`data` as a list."""
        return [self.data] if isinstance(self.data, str) else self.data


@dataclass
class Grid:
    """What `rosa compare` runs.

    Args:
        output_dir: the study's folder; rerun the command to resume.
        models: base models, as a recipe's `model`.
        methods: method names, or mappings with a `name` and keys of a recipe.
        training_sets: what to train on and which tasks to ask, by name.
        seeds: one run each.
        recipe: recipe keys of every run.
        tune: choose each method's learning rate first; null takes the recipe's.
        equal_time: train every method as long as one took in an earlier study of this grid, with
            the learning rates of that study; null gives every method the recipe's steps.
        evaluate: how the runs are scored; `full_responses` is true by default.
        threads: CPU threads per run; part of the grid since rounding depends on it.
    """

    output_dir: str
    models: list[str]
    methods: list[Any]
    training_sets: dict[str, TrainingSet]
    seeds: list[int] = field(default_factory=lambda: [2333])
    recipe: dict[str, Any] = field(default_factory=dict)
    tune: LearningRateSearch | None = None
    evaluate: EvaluationOptions = STUDY_OPTIONS
    threads: int = 1
    equal_time: EqualTime | None = None

    def check(self) -> None:
        """Raises RosaError for a value whose type is right but not its meaning; names the key."""
        lists: dict[str, list[Any]] = {
            "models": self.models,
            "training_sets": list(self.training_sets),
            "seeds": self.seeds,
            "methods": [entry.name for entry in self.entries],
            "titles of methods": [entry.display_title for entry in self.entries],
        }
        recipes = {"recipe": self.recipe}
        for name, train_set in self.training_sets.items():
            resolve_tasks(train_set.tasks)
            recipes[f"training_sets.{name}.recipe"] = train_set.recipe
        for entry in self.entries:
            own = {key: value for key, value in entry.recipe.items() if key != "method"}
            recipes[f"the method '{entry.name}'"] = own
        if self.tune is not None:
            lists["tune.learning_rates"] = [f"{rate:g}" for rate in self.tune.learning_rates]
            lists["tune.seeds"] = self.tune.seeds
            recipes["tune.recipe"] = self.tune.recipe
        for key, values in lists.items():
            if not values:
                raise RosaError(f"{key} is empty; give at least one")
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise RosaError(f"{key}: '{value}' is listed twice; remove or rename one")
        for where, keys in recipes.items():
            for key, place in RECIPE_KEYS_OF_GRID.items():
                if key in keys:
                    raise RosaError(f"{where}: `{key}` is not allowed there; use `{place}`")
            if self.tune is not None and "learning_rate" in keys:
                raise RosaError(f"{where}: tune chooses the learning_rate; remove one of the two")
        self.evaluate.check()
        if self.threads < 1:
            raise RosaError(f"threads must be at least 1, not {self.threads}")

    @property
    def entries(self) -> list[MethodEntry]:
        """The methods as mappings; a bare name is a mapping with that name."""
        return [parse_method_entry(value) for value in self.methods]

    def columns(self, train_set: TrainingSet) -> dict[str, str] | None:
        """The recipe key `columns` of the runs on one of the training sets."""
        return {**self.recipe, **train_set.recipe}.get("columns")


@dataclass(frozen=True)
class MethodEntry:
    """One row of the comparison: a method with the recipe keys that make it this variant."""

    name: str
    title: str | None
    budget: str | int | None
    recipe: dict[str, Any]

    @property
    def is_plain(self) -> bool:
        """Whether it has its method's own name, and so represents it."""
        return self.name == self.recipe["method"]

    @property
    def display_title(self) -> str:
        """What tables call it: its own title, else the method's, else its name."""
        if self.title:
            return str(self.title)
        return load_method(self.name).title if self.is_plain else self.name

    @property
    def group(self) -> str:
        """`baseline`, `ours` or `variant`; an entry under a name of its own is a variant.

        PEFT's methods that the paper does not compare count as baselines too.
        """
        group = load_method(self.name).group if self.is_plain else "variant"
        return "baseline" if group == "other" else group


def parse_method_entry(value: Any) -> MethodEntry:
    """An element of `methods`; raises RosaError if it is neither a name nor a mapping with one."""
    if isinstance(value, str):
        return MethodEntry(value, None, None, {"method": value})
    if not isinstance(value, dict) or not ({"name", "method"} & set(value)):
        raise RosaError(
            f"methods: {value!r} is neither a method's name nor a mapping with `method` or `name`"
        )
    name = str(value.get("name", value.get("method")))
    recipe = {key: v for key, v in value.items() if key not in ENTRY_KEYS}
    return MethodEntry(name, value.get("title"), value.get("budget"), {"method": name, **recipe})


def merge_keys(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`; mappings are merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_keys(merged[key], value) if both else value
    return merged
