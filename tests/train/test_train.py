"""`rosa train` end to end on a tiny model: what it writes, how it stops, and how it resumes."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from trl import SFTConfig

from rosa.cli.main import main
from rosa.common.files import lock_folder
from rosa.dls import DlsConfig
from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.models.loading import load
from rosa.train.callbacks import StopOnSignal
from rosa.train.recipe import Recipe
from rosa.train.run import TrainResult, train
from rosa.train.run_folder import RunFolder
from rosa.train.signals import stop_on_signals
from rosa.train.trainer import GuardedTrainer, trainer_arguments, warmup_steps
from tests.support.train_runs import (
    adapter,
    interrupted_at,
    logged,
    make_recipe,
    read_lines,
    same_adapter,
    write_inputs,
)

STEPS = 12
KEYS: dict[str, Any] = {
    "adapter": {"r": 4, "r_low": 1.0, "alpha": 1.0},
    "dls": DlsConfig(interval=3, warmup=2),
    "learning_rate": 0.02,
    "validation": 8,
    "max_steps": STEPS,
    "save_steps": 4,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    output = "the correct answer is answer2"
    rows = [{"instruction": f"question {i}", "input": "", "output": output} for i in range(40)]
    return write_inputs(tmp_path_factory.mktemp("train"), rows, layers=4)


@pytest.fixture
def recipe(place: Path, tmp_path: Path) -> Recipe:
    return make_recipe(place, tmp_path / "run", **KEYS)


@pytest.fixture(scope="module")
def finished(place: Path) -> tuple[TrainResult, list[str]]:
    """An uninterrupted run, and its log."""
    log: list[str] = []
    return train(make_recipe(place, place / "finished", **KEYS), log=log.append), log


@pytest.fixture(scope="module")
def stopped_at_7(place: Path) -> Path:
    """The folder of the same run, stopped in step 7."""
    with interrupted_at(7):
        result = train(make_recipe(place, place / "stopped", **KEYS), log=str)
    assert (result.finished, result.steps) == (False, 7)
    return result.folder


@pytest.fixture
def stopped(stopped_at_7: Path, recipe: Recipe) -> Path:
    """A copy of that folder, where `recipe` resumes."""
    return Path(shutil.copytree(stopped_at_7, recipe.output_dir))


def test_a_run_leaves_everything_it_promises(
    recipe: Recipe, finished: tuple[TrainResult, list[str]]
) -> None:
    result, log = finished
    folder = result.folder
    assert result.finished
    assert result.steps == STEPS
    losses = logged(folder)
    assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in read_lines(folder / "dls_history.jsonl")] == [3, 6, 9, 12]
    assert all(len(line["selected"]) == 2 for line in read_lines(folder / "dls_history.jsonl"))
    for name in ("loss.png", "layers.png", "README.md", "adapter_config.json"):
        assert (folder / name).stat().st_size > 0, name
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert Recipe(**{**stored, "dls": recipe.dls, "output_dir": recipe.output_dir}) == recipe
    assert log[0] == "training rows: 32 rows, longest 36 tokens; 0 truncated, 0 dropped"
    assert not list(folder.glob("*.bin"))  # no pickle next to the adapter
    # The adapter loads by its own folder and gives the trained answer.
    loaded = load(str(folder))
    ids = loaded.tokenizer("question 3", return_tensors="pt")["input_ids"]
    assert loaded.model(ids).logits.isfinite().all()


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, finished: tuple[TrainResult, list[str]], stopped: Path
) -> None:
    assert not (stopped / "adapter_model.safetensors").exists()
    resumed = train(recipe, resume=True, log=str)
    assert (resumed.finished, resumed.steps) == (True, STEPS)
    whole = finished[0].folder
    assert same_adapter(whole, stopped)
    histories = [folder / "dls_history.jsonl" for folder in (whole, stopped)]
    assert histories[0].read_text() == histories[1].read_text()
    steps = [line["step"] for line in read_lines(stopped / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def test_an_interrupt_in_the_last_step_loses_nothing(recipe: Recipe) -> None:
    with interrupted_at(2):
        result = train(replace(recipe, max_steps=2), log=str)
    assert result.finished
    assert adapter(result.folder)


def test_a_second_interrupt_ends_at_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    monkeypatch.setattr(GuardedTrainer, "training_step", twice)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, log=str)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_that_sees_several_gpus_trains_on_one(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SFTConfig, "_setup_devices", torch.device("cuda:0"), raising=False)
    monkeypatch.setattr(SFTConfig, "_n_gpu", 2, raising=False)
    assert trainer_arguments(recipe, 3, has_validation=False).n_gpu == 1


def test_fp16_without_cuda_raises(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rosa.train.run.pick_device", lambda: torch.device("cpu"))
    with pytest.raises(RosaError, match="fp16 trains on CUDA"):
        train(replace(recipe, precision="fp16"), log=str)


def test_an_interrupt_that_cannot_be_announced_still_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("os.write", broken)
    with stop_on_signals(stopper := StopOnSignal()):
        signal.raise_signal(signal.SIGINT)
    assert stopper.requested


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_loss = GuardedTrainer.compute_loss

    def nan_after_step_6(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute_loss(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 6 else loss

    monkeypatch.setattr(GuardedTrainer, "compute_loss", nan_after_step_6)
    with pytest.raises(
        RosaError, match=r"loss is not finite after step 6: .*checkpoint-4.*learning"
    ):
        train(recipe, log=str)
    kept = adapter(Path(recipe.output_dir) / "checkpoint-4")
    assert all(tensor.isfinite().all() for tensor in kept.values())


def test_a_folder_with_another_run_is_left_alone(
    recipe: Recipe, finished: tuple[TrainResult, list[str]]
) -> None:
    folder = finished[0].folder
    recipe = replace(recipe, output_dir=str(folder))
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RosaError, match="holds another run"):
        train(replace(recipe, seed=1), log=str)
    with pytest.raises(RosaError, match="already finished"):
        train(recipe, resume=True, log=str)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_an_invalid_choice_of_layers_leaves_the_folder_free(recipe: Recipe) -> None:
    invalid = replace(recipe, dls=DlsConfig(layers=[99]))
    with pytest.raises(RosaError, match=r"dls\.layers has 99"):
        train(invalid, log=str)
    corrected = replace(recipe, dls=DlsConfig(layers=[0]), max_steps=2)
    assert train(corrected, log=str).finished


def test_resuming_another_recipe_raises(recipe: Recipe, stopped: Path) -> None:
    with pytest.raises(RosaError, match=r"`learning_rate` \(0.02, now 0.5\)"):
        train(replace(recipe, learning_rate=0.5), resume=True, log=str)


def test_a_folder_in_use_raises(recipe: Recipe) -> None:
    Path(recipe.output_dir).mkdir()
    with (
        lock_folder(Path(recipe.output_dir)),
        pytest.raises(RosaError, match="another run is using the folder"),
    ):
        train(recipe, log=str)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_cut_checkpoint_is_passed_over(recipe: Recipe, stopped: Path, name: str) -> None:
    newest = stopped / "checkpoint-7" / name
    newest.write_bytes(newest.read_bytes()[:-200])
    assert [c.name for c in RunFolder(stopped).checkpoints()] == ["checkpoint-4"]
    if name == "optimizer.pt":
        log: list[str] = []
        assert train(recipe, resume=True, log=log.append).finished
        assert "resuming after step 4" in log


def test_a_damaged_recipe_of_the_run_is_named(recipe: Recipe, stopped: Path) -> None:
    for damage in (b"", b"a: [", b"\xff\xfe"):
        (stopped / "recipe.yaml").write_bytes(damage)
        with pytest.raises(RosaError, match=r"recipe.yaml is damaged"):
            train(recipe, resume=True, log=str)


def test_resuming_nothing_raises(recipe: Recipe) -> None:
    with pytest.raises(RosaError, match="holds no run"):
        train(recipe, resume=True, log=str)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size must be a number above 0"),
        ({"validation": -1}, "validation must be 0 or more"),
        ({"max_length": 1}, "max_length 1 dropped all 32 rows"),
        ({"report_to": ["tensorbord"]}, "'tensorbord' is not one of"),
        ({"validation": 40}, "leaves none to train on"),
        ({"data": "absent.json"}, "no data file absent.json"),
        ({"adapter": {"r_low": 0.01}}, "r_low"),
        ({"adapter": {"target_modules": ["nothing"]}}, "nothing"),
        ({"model": "./absent"}, "no folder ./absent"),
        ({"data": []}, "data is empty"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
        ({"seed": -1}, "seed must be from 0"),
        ({"method": "lora", "adapter": {"r": -3}}, "lora cannot be attached.*-3"),
        ({"adapter": {"target_modules": "("}}, "cannot be attached|no attention module"),
    ],
)
def test_bad_input_raises_before_anything_is_written(
    recipe: Recipe, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RosaError, match=words):
        train(replace(recipe, **changes), log=str)
    assert not Path(recipe.output_dir).exists()


def test_a_path_without_a_folder_raises(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null")):
        with pytest.raises(RosaError, match=r"is a file|cannot be written"):
            train(replace(recipe, output_dir=str(path)), log=str)


def test_the_adapter_finds_a_base_model_given_by_a_relative_path(
    recipe: Recipe, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    folder = train(replace(recipe, model="model", max_steps=1), log=str).folder
    monkeypatch.chdir(tmp_path)
    assert load(str(folder)).base == str((place / "model").resolve())


def test_the_command_exits_with_2_and_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: ./absent\ndata: tiny-sums\noutput_dir: x\n")
    assert main(["train", str(path)]) == 2
    assert capsys.readouterr().err == (
        "rosa train: there is no folder ./absent; give a model folder, a hub id or 'rosa-tiny'\n"
    )


def test_gradient_checkpointing_changes_memory_and_not_the_result(
    recipe: Recipe, finished: tuple[TrainResult, list[str]]
) -> None:
    plain = adapter(finished[0].folder)
    saving = train(replace(recipe, gradient_checkpointing=True), log=str).folder
    for key, tensor in adapter(saving).items():
        assert torch.allclose(tensor, plain[key], atol=1e-5), key


def test_bf16_trains_with_a_float32_adapter(recipe: Recipe) -> None:
    folder = train(replace(recipe, precision="bf16"), log=str).folder
    losses = logged(folder)
    assert losses[-1] < 0.8 * losses[0]
    assert {tensor.dtype for tensor in adapter(folder).values()} == {torch.float32}


def test_tensorboard_sees_the_loss(recipe: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(replace(recipe, report_to=["tensorboard"], max_steps=4), log=str).folder
    [events] = folder.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events)).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "method", ["lora", *(pytest.param(m, marks=pytest.mark.slow) for m in ("ln_tuning", "vera"))]
)
def test_other_methods_train_by_name_with_layer_selection(recipe: Recipe, method: str) -> None:
    other = replace(recipe, method=method, adapter=load_method(method).kwargs, max_steps=4)
    result = train(other, log=str)
    assert load(str(result.folder)).adapter == str(result.folder)
    assert read_lines(result.folder / "dls_history.jsonl")[0]["step"] == 3


@pytest.mark.parametrize(
    ("warmup", "total", "expected"),
    [(0.05, 1, 0), (0.05, 2, 1), (0.05, 100, 5), (0.99, 3, 2), (0, 1, 0), (1, 1, 1), (50, 8, 50)],
)
def test_a_share_of_warmup_leaves_a_step_at_the_full_rate(
    recipe: Recipe, warmup: float, total: int, expected: int
) -> None:
    recipe = replace(recipe, warmup=warmup)
    assert warmup_steps(recipe, total) == expected
    assert trainer_arguments(recipe, total, False).get_warmup_steps(total) == expected


def test_a_run_of_one_step_trains(recipe: Recipe) -> None:
    folder = train(replace(recipe, max_steps=1, learning_rate=1e-3), log=str).folder
    assert logged(folder, "learning_rate") == [1e-3]


def test_a_warmup_longer_than_the_run_is_told(recipe: Recipe) -> None:
    with pytest.warns(UserWarning, match="warmup lasts 9 steps and the run 2"):
        train(replace(recipe, max_steps=2, warmup=9), log=str)
