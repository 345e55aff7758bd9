"""The paper's tables and figures as grids.

    target = load_target("table1", "full", Changes(data="LLM-Adapters"))
    target.grid            # what `rosa compare` runs; None for figure1, which trains nothing

assets/grids/targets.yaml says what each compares, full.yaml how the paper trained and asked, and
tiny.yaml what is different on the embedded toy model. All targets of one scale share a folder, and
with it the runs that they have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from rosa.assets import ASSETS
from rosa.compare.grid import STUDY_OPTIONS, Grid, TrainingSet
from rosa.compare.training_data import verified
from rosa.errors import RosaError, did_you_mean
from rosa.evaluate.tasks import resolve_tasks

GRIDS = ASSETS / "grids"
Scale = Literal["full", "tiny"]
SOURCE = "https://github.com/AGI-Edgerunners/LLM-Adapters, folder ft-training_set"
TRAINING_FOLDERS = (".", "ft-training_set")  # of a plain folder, of a clone of LLM-Adapters
TEST_FOLDERS = (".", "dataset", "test")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Changes:
    """What a user changes about a target; None leaves what the scale says.

    Attributes:
        model: in place of the target's models: one of them, by its last part, or any other.
        data: a folder, a file, or a data set on the hub, with the training file in it.
        test_data: a folder with the test sets; None looks in `data`, then on the hub.
        output_dir: the folder of the runs.
        tasks: what is asked.
        seeds: the seeds.
        max_steps: optimizer steps of each run.
        limit: questions per task.
        num_beams: of the answers.
    """

    model: str | None = None
    data: str | None = None
    test_data: str | None = None
    output_dir: str | None = None
    tasks: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    max_steps: int | None = None
    limit: int | None = None
    num_beams: int | None = None


NO_CHANGES = Changes()


@dataclass(frozen=True)
class Target:
    """One table or figure at one scale.

    Attributes:
        name: `table1`, ..., `figure4`.
        title: what it compares, in a few words.
        models: base models.
        output_dir: the folder that the runs of this scale share.
        grid: the runs; None for figure 1, which trains nothing.
        work: rows and lengths of training sets, for estimates where the data is not there.
    """

    name: str
    title: str
    models: tuple[str, ...]
    output_dir: Path
    grid: Grid | None = None
    work: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its tables and pictures go."""
        return self.output_dir / self.name


def target_names() -> list[str]:
    """Every table and figure that can be reproduced."""
    return list(_read("targets"))


def load_target(name: str, scale: Scale = "full", changes: Changes = NO_CHANGES) -> Target:
    """The target called `name`, with a user's changes.

    Raises:
        RosaError: an unknown target, or `data` that lacks the training file.
    """
    targets = _read("targets")
    if name not in targets:
        hint = did_you_mean(name, targets)
        raise RosaError(f"there is no target '{name}'{hint}; there are {', '.join(targets)}")
    asked, setting = targets[name], scale_setting(scale)
    models = setting.get("models", asked["models"])
    if changes.model is not None:
        models = [matching_model(changes.model, asked["models"])]
    folder = Path(changes.output_dir or f"runs/reproduce-{scale}")
    target = Target(name, asked["title"], tuple(models), folder)
    if "methods" not in asked:
        return target
    grid = _grid(asked, setting, target, changes)
    return replace(target, grid=_with_data(grid, changes.data), work=setting["work"])


def scale_setting(scale: Scale) -> dict[str, Any]:
    """How a scale trains and asks: full.yaml, and for `tiny` what tiny.yaml changes about it."""
    full = _read("full")
    return full if scale == "full" else _laid_over(full, _read(scale))


def matching_model(given: str, known: Sequence[str]) -> str:
    """The one of `known` whose last part, case aside, is `given`; else `given` as it is."""
    return next((m for m in known if m.split("/")[-1].lower() == given.lower()), given)


def checked(target: Target, *, any_data: bool = False) -> Target:
    """The target once its training file is there and is the one the paper used.

    Raises:
        RosaError: no file, or another one, unless `any_data`: then it is called a stand-in.
    """
    if target.grid is None:
        return target
    for name, train_set in target.grid.training_sets.items():
        if train_set.sha256 is not None and not Path(str(train_set.data)).is_file():
            raise RosaError(
                f"{name} needs {train_set.data}, which is not here; get it from {SOURCE}, and say "
                "where it is: --data FOLDER"
            )
    sets = verified(target.grid.training_sets, any_data=any_data)
    return replace(target, grid=replace(target.grid, training_sets=sets))


def _grid(asked: dict[str, Any], setting: dict[str, Any], target: Target, changes: Changes) -> Grid:
    set_name = setting.get("training_set", asked["training_set"])
    train_set = TrainingSet(**setting["training_sets"][set_name])
    if changes.tasks:
        train_set = replace(train_set, tasks=list(changes.tasks))
    recipe = {"max_steps": changes.max_steps}
    evaluate = {"limit": changes.limit, "num_beams": changes.num_beams, "data": changes.test_data}
    return Grid(
        output_dir=str(target.output_dir),
        models=list(target.models),
        methods=[_entry(value, setting["methods"]) for value in asked["methods"]],
        training_sets={set_name: train_set},
        seeds=list(changes.seeds or setting["seeds"]),
        recipe=setting["recipe"] | _said(recipe),
        evaluate=replace(STUDY_OPTIONS, **setting["evaluate"] | _said(evaluate)),
    )


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _entry(value: str | dict[str, Any], at_this_scale: dict[str, dict[str, Any]]) -> Any:
    """A target's method with the keys that the scale gives it."""
    entry = {"name": value, "method": value} if isinstance(value, str) else value
    keys = at_this_scale.get(entry["method"])
    return _laid_over(keys, entry) if keys else value


def _with_data(grid: Grid, where: str | None) -> Grid:
    """The grid with its training files and test sets looked up in `where`."""
    sets = {}
    for name, train_set in grid.training_sets.items():
        if train_set.sha256 is None:
            if where is not None:
                raise RosaError(f"--data: {name} comes with the package; --scale full reads data")
            return grid
        sets[name] = replace(train_set, data=training_file(str(train_set.data), where))
    grid = replace(grid, training_sets=sets)
    if grid.evaluate.data is None:
        grid.evaluate = replace(grid.evaluate, data=test_folder(grid, where))
    return grid


def training_file(name: str, where: str | None) -> str:
    """The path of the training file `name` in a folder or hub data set, or `where` if it is a file.

    Without `where` the name itself, which is a file in the working folder or nowhere.

    Raises:
        RosaError: it is not in there.
    """
    if where is None or Path(where).is_file():
        return where or name
    if not Path(where).is_dir():
        return _from_hub(name, where)
    found = [Path(where) / sub / name for sub in TRAINING_FOLDERS]
    for file in found:
        if file.is_file():
            return str(file)
    raise RosaError(
        f"the folder {where} holds no {name}; get it from {SOURCE}, or give the file itself: "
        "--data FILE"
    )


def _from_hub(name: str, where: str) -> str:
    if not HUB_ID.fullmatch(where):
        raise RosaError(f"--data: there is no file or folder {where}")
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(where, name, repo_type="dataset")
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RosaError(
            f"--data: {where} is no folder here, and the hub did not give {name} from a data set "
            f"of that name: {reason}"
        ) from error


def test_folder(grid: Grid, where: str | None) -> str | None:
    """The folder in `where` with a test set of the grid's tasks; None leaves them to the hub."""
    if where is None or not Path(where).is_dir():
        return None
    tasks = resolve_tasks(name for s in grid.training_sets.values() for name in s.tasks)
    folders = [Path(where) / sub for sub in TEST_FOLDERS]
    return next((str(f) for f in folders if any((f / t.file).is_file() for t in tasks)), None)


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((GRIDS / f"{name}.yaml").read_text(encoding="utf-8"))
