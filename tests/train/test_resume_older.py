"""Resuming runs of earlier versions: their dtype, and keys that recipes did not have yet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import rosa.models.devices
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run import train
from rosa.train.run_folder import RunFolder, recipe_difference
from rosa.train.trainer import GuardedTrainer
from tests.support.train_runs import interrupted_at, make_recipe, write_inputs

ROWS = [{"instruction": f"question {i}", "output": f"answer{i % 4}"} for i in range(8)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), ROWS)


def started(place: Path, folder: Path, native_bf16: bool, monkeypatch: Any) -> Recipe:
    """The recipe of a run with `precision: auto` that was stopped after its first step."""
    monkeypatch.setattr(rosa.models.devices, "computes_in_bf16", lambda device: native_bf16)
    adapter = {"r": 4, "r_low": 1.0}
    recipe = make_recipe(
        place, folder, precision="auto", adapter=adapter, max_steps=3, validation=0
    )
    with interrupted_at(1):
        assert not train(recipe, log=str).finished
    return recipe


def resumed_dtype(recipe: Recipe, monkeypatch: Any) -> tuple[bool, torch.dtype]:
    """Whether a run that is resumed autocasts to bf16, and the dtype of its base model."""
    seen = []
    step = GuardedTrainer.training_step

    def look(self: GuardedTrainer, model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((self.args.bf16, model.get_input_embeddings().weight.dtype))
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(GuardedTrainer, "training_step", look)
    assert train(recipe, resume=True, log=str).finished
    return seen[0]


@pytest.mark.parametrize("native_bf16", [True, False])
def test_a_run_resumed_on_another_device_keeps_its_dtype(
    native_bf16: bool, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = started(place, tmp_path / "run", native_bf16, monkeypatch)
    monkeypatch.setattr(rosa.models.devices, "computes_in_bf16", lambda device: not native_bf16)
    dtype = torch.bfloat16 if native_bf16 else torch.float32
    assert resumed_dtype(recipe, monkeypatch) == (native_bf16, dtype)


def test_a_run_older_than_bf16_on_cpus_resumes_in_float32(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = started(place, tmp_path / "run", False, monkeypatch)
    older = RunFolder(tmp_path / "run").recipe
    keys = yaml.safe_load(older.read_text()) | {"precision": "auto"}
    del keys["group_by_length"]
    older.write_text(yaml.safe_dump(keys))
    monkeypatch.setattr(rosa.models.devices, "computes_in_bf16", lambda device: True)
    with pytest.raises(RosaError, match="another `precision`"):
        train(replace(recipe, precision="bf16"), resume=True, log=str)
    assert resumed_dtype(recipe, monkeypatch) == (False, torch.float32)


def test_a_nested_key_that_an_older_recipe_lacks_has_its_default(place: Path) -> None:
    recipe = make_recipe(place, Path("run"), adapter={"r": 4}, dls=DlsConfig(interval=5))
    before = yaml.safe_load(yaml.safe_dump(vars(recipe) | {"dls": {"interval": 5}}))
    assert recipe_difference(before, recipe) is None
    explicit = replace(recipe, adapter={"r": 4, "r_low": 0.25})
    assert recipe_difference(before, explicit) is None
    for changed, key in (
        (replace(recipe, dls=DlsConfig(interval=5, k_ratio=0.25)), "dls.k_ratio"),
        (replace(recipe, adapter={"r": 4, "r_low": 0.5}), "adapter.r_low"),
        (replace(recipe, adapter={}), "adapter.r"),
        (replace(recipe, dls=None), "dls"),
    ):
        assert f"`{key}`" in str(recipe_difference(before, changed))
