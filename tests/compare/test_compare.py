"""`rosa compare` for real: two workers, a failing method, a second call, a run repeated alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from rosa.cli.main import main
from rosa.compare.gather import read_run
from rosa.compare.grid import parse_method_entry
from rosa.compare.job import Job, RunGroup
from rosa.compare.results import StudyResults
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run_folder import RunFolder
from tests.support.processes import marked, output_of, running, wait_for

GRID: dict[str, Any] = {
    "models": ["rosa-tiny"],
    "methods": ["lora", {"name": "broken", "method": "lora", "adapter": {"r": 0}}],
    "training_sets": {"toy": {"data": "tiny-sums", "tasks": ["tiny-sums"]}},
    "seeds": [1],
    "recipe": {
        "batch_size": 2,
        "gradient_accumulation": 1,
        "max_steps": 3,
        "save_steps": 2,
        "validation": 4,
        "limit": 40,
        "precision": "float32",  # as `auto` is in the process of the tests
    },
    "evaluate": {"limit": 4, "max_new_tokens": 4},
}

TUNE = {"learning_rates": [1.0e-3, 1.0e-2, 1.0e30]}


def write_grid(folder: Path, **changes: Any) -> Path:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump({**GRID, "output_dir": str(folder / "study"), **changes}))
    return file


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rosa", "compare", *words]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with one method that cannot work."""
    folder = tmp_path_factory.mktemp("compare")
    grid = write_grid(folder, tune=TUNE)
    assert main(["compare", str(grid), "--workers", "2"]) == 1  # something failed
    return folder / "study"


def test_the_failure_is_reported_and_the_rest_is_there(study: Path) -> None:
    results = StudyResults.load(study)
    assert [run.method for run in results.runs] == ["lora"]
    errors = {failure["run"]: failure["error"] for failure in results.failures}
    assert "`r` should be a positive integer" in errors["runs/rosa-tiny/toy/broken/seed-1"]
    run = results.runs[0]
    assert run.trainable == 233_472
    assert run.scores[0].scored == len(results.answers(run, "tiny-sums")) == 4
    chosen = results.tuning[0]
    losses = chosen["losses"]
    assert losses.pop("1e+30") is None  # diverged, which is no failure
    assert not any("lora/lr-" in run for run in errors)
    assert run.learning_rate == chosen["chosen"] == float(min(losses, key=lambda r: losses[r]))


@pytest.mark.parametrize(
    ("name", "content"),
    [("costs.json", "{}"), ("recipe.yaml", "learning_rate: fast"), ("evaluation/results.json", "")],
)
def test_a_damaged_run_is_named(study: Path, tmp_path: Path, name: str, content: str) -> None:
    run = StudyResults.load(study).runs[0]
    shutil.copytree(study / run.folder, tmp_path / run.folder)
    (tmp_path / run.folder / name).write_text(content)
    group = RunGroup(run.model, run.train_set, run.method)
    recipe = Recipe("rosa-tiny", "tiny-sums", str(tmp_path / run.folder))
    with pytest.raises(RosaError, match="damaged"):
        read_run(tmp_path, Job(run.folder, group, recipe), parse_method_entry("lora"))


def test_a_run_can_be_repeated_alone(study: Path, tmp_path: Path) -> None:
    run = study / StudyResults.load(study).runs[0].folder
    assert main(["train", str(run / "recipe.yaml"), "--output_dir", str(tmp_path / "alone")]) == 0
    one, other = ((f / "adapter_model.safetensors").read_bytes() for f in (run, tmp_path / "alone"))
    assert one == other
    recipe, repeated = (RunFolder(f).read_recipe() for f in (run, tmp_path / "alone"))
    assert {**recipe, "output_dir": None} == {**repeated, "output_dir": None}


def test_a_finished_run_with_another_recipe_is_not_taken_for_this_one(
    study: Path, capsys: pytest.CaptureFixture
) -> None:
    entry = {"name": "lora", "method": "lora", "adapter": {"r": 3}}
    grid = write_grid(study.parent, methods=[entry], tune=TUNE)
    assert main(["compare", str(grid)]) == 2
    assert "had another `adapter." in capsys.readouterr().err


def test_the_tables_and_the_path_of_the_report_come_last(
    study: Path, capsys: pytest.CaptureFixture
) -> None:
    grid = write_grid(study.parent, tune=TUNE, methods=["lora"])
    assert main(["compare", str(grid)]) == 0  # nothing is left to run
    *table, last = capsys.readouterr().out.splitlines()
    assert any("tiny-sums" in line for line in table)
    assert any(line.strip().startswith("LoRA") for line in table)
    assert last == f"finished runs: 1, in {study}; report: {study / 'report.html'}"
    assert (study / "report.html").is_file()


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again_give_the_uninterrupted_study(tmp_path: Path) -> None:
    recipe = {**GRID["recipe"], "max_steps": 60, "save_steps": 30}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
        write_grid(folder, methods=["lora"], recipe=recipe)
    output_of(command(str(whole / "grid.yaml")))
    metrics = cut / "study/runs/rosa-tiny/toy/lora/seed-1/metrics.jsonl"
    with running(command(str(cut / "grid.yaml"))) as compare:
        wait_for(compare, until=metrics.is_file)
        os.kill(compare.process.pid, signal.SIGINT)
        wait_for(compare)
        assert compare.process.returncode == 130, compare.said()
    status = cut / "study/status/runs/rosa-tiny/toy/lora/seed-1.json"
    assert json.loads(status.read_text())["state"] == "stopped"
    output_of(command(str(cut / "grid.yaml")))
    weights = "study/runs/rosa-tiny/toy/lora/seed-1/adapter_model.safetensors"
    assert (whole / weights).read_bytes() == (cut / weights).read_bytes()


@pytest.mark.slow
def test_runs_end_with_the_study_that_was_killed(tmp_path: Path) -> None:
    recipe = {**GRID["recipe"], "max_steps": 5000, "save_steps": 5000}
    run = "runs/rosa-tiny/toy/lora/seed-1"
    status = tmp_path / f"study/status/{run}.json"
    metrics = tmp_path / f"study/{run}/metrics.jsonl"
    grid = write_grid(tmp_path, methods=["lora"], recipe=recipe)
    with running(command(str(grid))) as compare:
        wait_for(compare, until=metrics.is_file)
        compare.process.kill()
        wait_for(until=lambda: not marked(compare.mark))  # the run saves, and nothing is left
    assert json.loads(status.read_text())["state"] == "stopped"
    assert RunFolder(tmp_path / f"study/{run}").checkpoints()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)")
def test_several_workers_of_a_ray_cluster(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, seeds=[1, 2])
    words = [str(grid), "--executor", "ray", "--workers", "2"]
    output_of(command(*words), code=1)
    results = StudyResults.load(tmp_path / "study")
    assert [(run.method, run.seed) for run in results.runs] == [("lora", 1), ("lora", 2)]
    assert len(results.failures) == 2
