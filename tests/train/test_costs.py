"""What a run costs: right figures, the same for a run in parts, and None where not measured."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.train.costs import CostMeter, Totals, read_costs, restored
from rosa.train.recipe import Recipe
from rosa.train.run import TrainResult, train
from rosa.train.run_folder import RunFolder
from rosa.train.trainer import GuardedTrainer
from tests.support.train_runs import (
    interrupted_at,
    logged,
    make_recipe,
    same_adapter,
    write_inputs,
)

STEPS = 6
KEYS: dict[str, Any] = {
    "method": "lora",
    "adapter": {**load_method("lora").kwargs, "r": 2},
    "validation": 4,
    "max_steps": STEPS,
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    rows = [{"prompt": "question " * (1 + i % 3), "completion": "answer2"} for i in range(24)]
    return write_inputs(tmp_path_factory.mktemp("costs"), rows)


@pytest.fixture
def recipe(place: Path, tmp_path: Path) -> Recipe:
    return make_recipe(place, tmp_path / "run", **KEYS)


@pytest.fixture(scope="module")
def whole(place: Path) -> tuple[TrainResult, float]:
    """An uninterrupted run, and how many seconds it took."""
    start = time.perf_counter()
    result = train(make_recipe(place, place / "whole", **KEYS), log=str)
    return result, time.perf_counter() - start


def tokens_logged(folder: Path) -> int:
    """The tokens that TRL counts, without padding."""
    return int(max(logged(folder, "num_tokens")))


def test_a_finished_run_says_what_it_cost(whole: tuple[TrainResult, float]) -> None:
    result, passed = whole
    costs = result.costs
    assert costs is not None
    assert costs == read_costs(result.folder)
    weights = result.folder / "adapter_model.safetensors"
    assert costs.adapter_bytes == weights.stat().st_size > 4 * costs.trainable
    assert costs.trainable == result.trainable < costs.total
    assert costs.tokens == tokens_logged(result.folder)
    assert 0 < STEPS * costs.step_seconds_median / 3 < costs.train_seconds < passed
    assert costs.tokens_per_second > costs.tokens / costs.train_seconds
    assert 50e6 < costs.peak_host_bytes < 20e9
    assert (costs.peak_device_bytes is None) == (not torch.cuda.is_available())
    assert costs.threads == torch.get_num_threads()
    assert costs.device


def test_a_run_in_parts_costs_all_its_parts(
    recipe: Recipe, whole: tuple[TrainResult, float]
) -> None:
    with interrupted_at(3):
        stopped = train(recipe, log=str)
    assert stopped.costs is None
    assert not (stopped.folder / "costs.json").exists()
    state = json.loads((stopped.folder / "checkpoint-3" / "trainer_state.json").read_text())
    first = restored(state["stateful_callbacks"]["CostMeter"], 3)
    assert len(first.step_seconds) == 3
    both = train(recipe, resume=True, log=str).costs
    assert whole[0].costs is not None
    assert both is not None
    assert both.tokens == whole[0].costs.tokens
    assert both.train_seconds > first.train_seconds
    assert both.peak_host_bytes >= first.peak_host_bytes


def test_work_lost_to_a_kill_is_not_counted_twice(
    recipe: Recipe, whole: tuple[TrainResult, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = GuardedTrainer.compute_loss

    def killed(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(GuardedTrainer, "compute_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, log=str)
    resumed = train(recipe, resume=True, log=str).costs  # after step 4; the fifth is done again
    assert whole[0].costs is not None
    assert resumed is not None
    assert resumed.tokens == whole[0].costs.tokens


@pytest.mark.parametrize("validation", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_a_run_killed_while_it_writes_its_results_resumes_with_them(
    recipe: Recipe,
    whole: tuple[TrainResult, float],
    monkeypatch: pytest.MonkeyPatch,
    validation: int,
) -> None:
    def killed(*_args: Any) -> None:
        raise KeyboardInterrupt

    recipe = replace(recipe, validation=validation)
    with monkeypatch.context() as patch:
        patch.setattr("rosa.train.run.write_costs", killed)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, log=str)
    assert not RunFolder(Path(recipe.output_dir)).finished
    resumed = train(recipe, resume=True, log=str)
    assert (resumed.finished, resumed.steps) == (True, STEPS)  # no step is done again
    assert not (resumed.folder / ".adapter").exists()
    assert resumed.costs is not None
    assert resumed.costs.tokens == tokens_logged(resumed.folder)
    expected = whole[0].folder
    if validation == 0:
        expected = train(replace(recipe, output_dir=f"{recipe.output_dir}-whole"), log=str).folder
    assert same_adapter(expected, resumed.folder)


def test_step_time_leaves_validation_out(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = GuardedTrainer.evaluate

    def slow(self: GuardedTrainer, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.4)
        return evaluation(self, *args, **kwargs)

    monkeypatch.setattr(GuardedTrainer, "evaluate", slow)
    costs = train(replace(recipe, save_steps=1), log=str).costs
    assert costs is not None
    assert costs.step_seconds_median < 0.3
    assert costs.tokens_per_second > costs.tokens / (STEPS * 0.4)
    assert costs.train_seconds > STEPS * 0.4


def test_totals_add_up() -> None:
    one = Totals([1.0, 2.0], 4.0, 10, 100, 7, 5.0)
    two = Totals([3.0], 2.0, 5, 90, 9, 1.5)
    assert one + two == Totals([1.0, 2.0, 3.0], 6.0, 15, 100, 9, 6.5)
    assert Totals() + one == one
    unknown = replace(two, energy_joules=None, peak_device_bytes=None)
    assert (one + unknown).energy_joules is None  # half of the energy would be a wrong figure
    assert (unknown + one).peak_device_bytes is None
    assert Totals(**json.loads(json.dumps(asdict(one)))) == one


def test_a_checkpoint_without_costs_is_answered_with_a_warning() -> None:
    for stored in (None, {}, {"attributes": {}}, {"attributes": {"totals": {"steps": 1}}}):
        with pytest.warns(UserWarning, match="step 7 has no costs"):
            assert restored(stored, 7) == Totals()


def test_the_meter_is_at_rest_outside_the_loop() -> None:
    meter = CostMeter()
    assert meter.totals == Totals()
    state = SimpleNamespace(global_step=0, stateful_callbacks={})
    args = SimpleNamespace(device=torch.device("cpu"))
    meter.on_train_begin(args, state, None)
    meter.count(3)
    meter.on_train_end(args, state, None)
    before = meter.totals
    assert (before.tokens, before.peak_device_bytes, before.energy_joules) == (3, None, None)
    assert meter.totals == before


def test_costs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=r"costs.json; `rosa train` writes it"):
        read_costs(tmp_path)
    for damage in ("", "[]", '{"trainable": 1}'):
        (tmp_path / "costs.json").write_text(damage)
        with pytest.raises(RosaError, match=r"costs.json cannot be read"):
            read_costs(tmp_path)
