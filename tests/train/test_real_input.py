"""The whole path on real weights and real data: convert, train, score every test set there is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pretraining.llama2c import convert_llama2c
from rosa.cli.main import main
from tests.support.train_runs import logged

RECIPE = str(Path(__file__).parents[2] / "recipes" / "stories260k.yaml")


@pytest.fixture(scope="module")
def model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "stories260K"
    source = shared_data / "stories260K"
    convert_llama2c(source / "stories260K.bin", source / "tok512.bin", folder)
    return folder


@pytest.fixture(scope="module")
def adapter(shared_data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps on GSM8K."""
    folder = tmp_path_factory.mktemp("run") / "gsm8k"
    data = shared_data / "train" / "gsm8k_train_llm_adapters_format.json"
    options = {"model": model, "data": data, "output_dir": folder, "max_steps": 20, "log_steps": 1}
    quick = {"limit": 120, "validation": 8, "save_steps": 20, "max_length": 384, "report_to": "[]"}
    words = [word for key, value in (options | quick).items() for word in (f"--{key}", str(value))]
    assert main(["train", RECIPE, *words]) == 0
    return folder


def test_the_loss_falls_on_gsm8k(adapter: Path) -> None:
    losses = logged(adapter)
    assert len(losses) == 20
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    assert len((adapter / "dls_history.jsonl").read_text().splitlines()) == 2


def score(adapter: Path, data: Path, out: Path, limit: int) -> dict:
    tasks = sorted(f.parent.name for f in data.glob("*/test.json"))
    assert len(tasks) == 12
    options = ["--data", str(data), "--limit", str(limit), "--out", str(out)]
    assert main(["evaluate", str(adapter), "--tasks", *tasks, *options]) == 0
    return json.loads((out / "results.json").read_text())


def test_every_test_set_is_scored(adapter: Path, shared_data: Path, tmp_path: Path) -> None:
    results = score(adapter, shared_data / "test", tmp_path / "scores", limit=1)
    assert len(results["tasks"]) == 12
    assert all(task["scored"] == 1 for task in results["tasks"])


@pytest.mark.slow
def test_twenty_questions_of_every_test_set(
    adapter: Path, shared_data: Path, tmp_path: Path
) -> None:
    results = score(adapter, shared_data / "test", tmp_path / "scores", limit=20)
    assert all(task["scored"] == 20 for task in results["tasks"])
