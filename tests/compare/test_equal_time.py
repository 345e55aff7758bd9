"""`equal_time` in a grid: the steps that fit into the time of one method of an earlier study."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rosa.cli.compare import GridParser
from rosa.cli.recipe_parser import resolve_recipe
from rosa.compare.equal_time import EqualTime
from rosa.compare.plan import plan
from rosa.compare.results import RunResult, StudyResults
from rosa.compare.tuning import LearningRateSearch
from rosa.errors import RosaError
from tests.support.compare import make_grid

SECONDS = {"rosa": [30.0, 90.0, 40.0], "lora": [20.0, 10.0, 16.0]}  # of the steps, by seed
RATES = {"rosa": 1e-2, "lora": 1e-3}


def measured(folder: Path, max_steps: int | None = 100) -> str:
    """A finished study at equal steps."""
    runs = []
    for method, values in SECONDS.items():
        for seed, seconds in enumerate(values):
            costs = {"tokens": 600, "tokens_per_second": 600 / seconds, "train_seconds": 1e6}
            name = f"runs/{method}-{seed}"
            (folder / name).mkdir(parents=True)
            (folder / name / "recipe.yaml").write_text(yaml.safe_dump({"max_steps": max_steps}))
            runs.append(
                RunResult("rosa-tiny", "toy", method, method, "variant", seed, name,
                          RATES[method], 1, 2, (), costs)
            )  # fmt: skip
    StudyResults(folder, tuple(runs)).save()
    return str(folder)


def test_every_method_trains_as_long_as_the_named_one_with_its_own_rate(tmp_path: Path) -> None:
    equal = EqualTime(measured(tmp_path), "rosa")
    grid = make_grid(
        equal_time=equal, recipe={"max_steps": 100}, tune=LearningRateSearch([1e-4, 1e-5])
    )
    jobs = plan(grid, resolve_recipe)
    assert not any(job.is_tuning or job.is_tuned for job in jobs)
    found = {(j.group.method, j.recipe.max_steps, j.recipe.learning_rate) for j in jobs}
    assert found == {("rosa", 100, 1e-2), ("lora", 250, 1e-3)}  # 40 s and 16 s are the medians


def test_what_was_not_measured_raises(tmp_path: Path) -> None:
    study = measured(tmp_path / "a")
    for equal, methods, words in (
        (EqualTime(study, "rosa"), ["rosa", "dora"], "no finished run of 'dora' with rosa-tiny"),
        (EqualTime(study, "bone"), ["rosa"], "no finished run of 'bone'"),
        (EqualTime(measured(tmp_path / "b", None), "rosa"), ["rosa"], "have no max_steps"),
        (EqualTime(str(tmp_path / "c"), "rosa"), ["rosa"], "holds no study"),
    ):
        with pytest.raises(RosaError, match=words):
            plan(make_grid(equal_time=equal, methods=methods), resolve_recipe)


def test_it_is_a_key_of_a_grid_and_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    keys = {
        "output_dir": "x",
        "models": ["rosa-tiny"],
        "methods": ["lora"],
        "training_sets": {"toy": {"data": "tiny-sums", "tasks": ["toy"]}},
    }
    equal = {"study": "runs/a", "method": "lora"}
    file.write_text(yaml.safe_dump({**keys, "equal_time": equal}))
    assert GridParser().parse_args([str(file)])[0].equal_time == EqualTime("runs/a", "lora")
    file.write_text(yaml.safe_dump(keys))
    given = ["--equal_time", "{study: runs/a, method: lora}"]
    assert GridParser().parse_args([str(file), *given])[0].equal_time == EqualTime("runs/a", "lora")
    assert GridParser().parse_args([str(file)])[0].equal_time is None
    file.write_text(yaml.safe_dump({**keys, "equal_time": {"study": "runs/a"}}))
    with pytest.raises(RosaError, match=r"equal_time\.method is missing"):
        GridParser().parse_args([str(file)])
