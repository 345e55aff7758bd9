"""The paper's tables and figures as grids.

    target = load_target("table1", "full", data="LLM-Adapters")
    target.grid            # what `rosa compare` runs; None for figure1, which trains nothing

assets/grids/targets.yaml has what each compares, full.yaml the paper's training and evaluation, and
tiny.yaml what differs on the embedded toy model. All targets of one scale share a folder, and with
it the runs that they have in common.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from rosa.assets import ASSETS
from rosa.compare.grid import STUDY_OPTIONS, Grid, TrainingSet, merge_keys
from rosa.compare.training_files import check_training_files
from rosa.errors import RosaError, did_you_mean, one_line
from rosa.evaluate.tasks import resolve_tasks

GRIDS = ASSETS / "grids"
Scale = Literal["full", "tiny"]
SOURCE = "https://github.com/AGI-Edgerunners/LLM-Adapters, folder ft-training_set"
TRAINING_FOLDERS = (".", "ft-training_set")  # of a plain folder, of a clone of LLM-Adapters
TEST_FOLDERS = (".", "dataset", "test")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Target:
    """One table or figure at one scale.

    Attributes:
        name: `table1`, ..., `figure4`.
        title: what it compares, in a few words.
        models: base models.
        output_dir: the folder that the runs of this scale share.
        grid: the runs; None for figure 1, which trains nothing.
        workloads: rows and lengths of training sets, for estimates without the data.
    """

    name: str
    title: str
    models: tuple[str, ...]
    output_dir: Path
    grid: Grid | None = None
    workloads: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder of its tables and figures."""
        return self.output_dir / self.name


def target_names() -> list[str]:
    """Every table and figure that can be reproduced."""
    return list(_read("targets"))


def load_target(
    name: str,
    scale: Scale = "full",
    *,
    model: str | None = None,
    data: str | None = None,
    test_data: str | None = None,
    output_dir: str | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    limit: int | None = None,
    num_beams: int | None = None,
) -> Target:
    """The target called `name`; None keeps what the scale gives.

    Args:
        model: instead of the target's models: one of them, by its last part, or any other.
        data: a folder, a file, or a data set on the hub, with the training file in it.
        test_data: a folder with the test sets; None looks in `data`, then on the hub.
        output_dir: the folder of the runs.
        tasks, seeds, max_steps: of each run.
        limit, num_beams: of the evaluations, as in `EvaluationOptions`.

    Raises:
        RosaError: an unknown target, or `data` without the training file.
    """
    targets = _read("targets")
    if name not in targets:
        hint = did_you_mean(name, targets)
        raise RosaError(f"there is no target '{name}'{hint}; choose from {', '.join(targets)}")
    content, setting = targets[name], scale_setting(scale)
    models = setting.get("models", content["models"])
    if model is not None:
        known = (m for m in content["models"] if m.split("/")[-1].lower() == model.lower())
        models = [next(known, model)]
    folder = Path(output_dir or f"runs/reproduce-{scale}")
    target = Target(name, content["title"], tuple(models), folder)
    if "methods" not in content:
        return target
    set_name = setting.get("training_set", content["training_set"])
    train_set = TrainingSet(**setting["training_sets"][set_name])
    if tasks:
        train_set = replace(train_set, tasks=list(tasks))
    evaluate = _given(limit=limit, num_beams=num_beams, data=test_data)
    grid = Grid(
        output_dir=str(folder),
        models=list(models),
        methods=[_entry(value, setting["methods"]) for value in content["methods"]],
        training_sets={set_name: train_set},
        seeds=list(seeds or setting["seeds"]),
        recipe=setting["recipe"] | _given(max_steps=max_steps),
        evaluate=replace(STUDY_OPTIONS, **setting["evaluate"] | evaluate),
    )
    return replace(target, grid=_with_data(grid, data), workloads=setting["workloads"])


def scale_setting(scale: Scale) -> dict[str, Any]:
    """The settings of a scale: full.yaml, overridden for `tiny` by tiny.yaml."""
    full = _read("full")
    return full if scale == "full" else merge_keys(full, _read(scale))


def check_training_data(target: Target, *, any_data: bool = False) -> Target:
    """The target, if its training file exists and is the one that the paper used.

    Another file raises RosaError, unless `any_data`, which marks it as a stand-in.
    """
    if target.grid is None:
        return target
    for name, train_set in target.grid.training_sets.items():
        if train_set.sha256 is not None and not Path(str(train_set.data)).is_file():
            raise RosaError(
                f"{name} needs {train_set.data}, which was not found; get it from {SOURCE}, and "
                "pass --data FOLDER"
            )
    sets = check_training_files(target.grid.training_sets, any_data=any_data)
    return replace(target, grid=replace(target.grid, training_sets=sets))


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _entry(value: str | dict[str, Any], scale_keys: dict[str, dict[str, Any]]) -> Any:
    """A target's method with the keys that the scale gives it."""
    entry = {"name": value, "method": value} if isinstance(value, str) else value
    keys = scale_keys.get(entry["method"])
    return merge_keys(keys, entry) if keys else value


def _with_data(grid: Grid, source: str | None) -> Grid:
    """The grid with its training files and test sets looked up in `source`."""
    sets = {}
    for name, train_set in grid.training_sets.items():
        if train_set.sha256 is None:
            if source is not None:
                raise RosaError(f"--data: {name} comes with the package; --scale full reads data")
            return grid
        sets[name] = replace(train_set, data=find_training_file(str(train_set.data), source))
    grid = replace(grid, training_sets=sets)
    if grid.evaluate.data is None:
        grid.evaluate = replace(grid.evaluate, data=find_test_folder(grid, source))
    return grid


def find_training_file(name: str, source: str | None) -> str:
    """The training file `name` in a folder or hub data set, or `source` itself if it is a file.

    Without `source` the name itself, to be found in the working folder. Raises RosaError if it is
    not in there.
    """
    if source is None or Path(source).is_file():
        return source or name
    if not Path(source).is_dir():
        return _download(name, source)
    for file in (Path(source) / folder / name for folder in TRAINING_FOLDERS):
        if file.is_file():
            return str(file)
    raise RosaError(
        f"the folder {source} has no {name}; get it from {SOURCE}, or pass the file itself: "
        "--data FILE"
    )


def _download(name: str, dataset: str) -> str:
    if not HUB_ID.fullmatch(dataset):
        raise RosaError(f"--data: there is no file or folder {dataset}")
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(dataset, name, repo_type="dataset")
    except Exception as error:
        reason = one_line(error)
        raise RosaError(
            f"--data: there is no folder {dataset}, and {name} cannot be downloaded from a data "
            f"set of that name: {reason}"
        ) from error


def find_test_folder(grid: Grid, source: str | None) -> str | None:
    """The folder in `source` with a test set of the grid's tasks; None means the hub."""
    if source is None or not Path(source).is_dir():
        return None
    tasks = resolve_tasks(name for s in grid.training_sets.values() for name in s.tasks)
    folders = [Path(source) / sub for sub in TEST_FOLDERS]
    return next((str(f) for f in folders if any((f / t.file).is_file() for t in tasks)), None)


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((GRIDS / f"{name}.yaml").read_text(encoding="utf-8"))
