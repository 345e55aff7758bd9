"""`rosa train` end to end on a tiny model: what it writes, how it stops, and how it resumes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rosa.cli.main import main
from rosa.common.files import lock_folder
from rosa.dls import DlsConfig
from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.models.loading import load
from rosa.train.recipe import Recipe
from rosa.train.run import GuardedTrainer, train
from tests.support.tiny_folder import write_model_folder

STEPS = 12


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("model"), layers=4)


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> Recipe:
    rows = [
        {"instruction": f"question {i}", "input": "", "output": "the correct answer is answer2"}
        for i in range(40)
    ]
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    return Recipe(
        model=str(model_folder),
        data=str(data),
        output_dir=str(tmp_path / "run"),
        adapter={"r": 4, "r_low": 1.0, "alpha": 1.0},
        dls=DlsConfig(interval=3, warmup=2),
        learning_rate=0.02,
        validation=8,
        max_steps=STEPS,
        save_steps=4,
        log_steps=1,
        gradient_accumulation=2,
        report_to=[],
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the middle of the given optimizer step."""
    training_step = GuardedTrainer.training_step

    def interrupted(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step - 1:
            monkeypatch.setattr(GuardedTrainer, "training_step", training_step)
            signal.raise_signal(signal.SIGINT)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(GuardedTrainer, "training_step", interrupted)


def test_a_run_leaves_everything_it_promises(recipe: Recipe) -> None:
    said: list[str] = []
    result = train(recipe, log=said.append)
    folder = result.folder
    assert result.finished
    assert result.steps == STEPS
    losses = [line["loss"] for line in lines(folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert [line["step"] for line in lines(folder / "dls_history.jsonl")] == [3, 6, 9, 12]
    assert all(len(line["selected"]) == 2 for line in lines(folder / "dls_history.jsonl"))
    for name in ("loss.png", "layers.png", "README.md", "adapter_config.json"):
        assert (folder / name).stat().st_size > 0, name
    assert Recipe(
        **{**yaml.safe_load((folder / "recipe.yaml").read_text()), "dls": recipe.dls}
    ) == (recipe)
    assert said[0] == "training rows: 32 rows, longest 36 tokens; 0 truncated, 0 dropped"
    assert not list(folder.glob("*.bin"))  # no pickle next to the adapter
    # The adapter loads by its own folder and gives the trained answer.
    loaded = load(str(folder))
    ids = loaded.tokenizer("question 3", return_tensors="pt")["input_ids"]
    assert loaded.model(ids).logits.isfinite().all()


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = train(recipe, log=str).folder
    parts = replace(recipe, output_dir=str(tmp_path / "parts"))
    interrupt_at(monkeypatch, step=6)
    stopped = train(parts, log=str)
    assert (stopped.finished, stopped.steps) == (False, 6)
    assert not (stopped.folder / "adapter_model.safetensors").exists()
    resumed = train(parts, resume=True, log=str)
    assert (resumed.finished, resumed.steps) == (True, STEPS)
    one, two = adapter(whole), adapter(resumed.folder)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (whole / "dls_history.jsonl").read_text() == (
        resumed.folder / "dls_history.jsonl"
    ).read_text()
    steps = [line["step"] for line in lines(resumed.folder / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def test_an_interrupt_in_the_last_step_loses_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, step=STEPS)
    result = train(recipe, log=str)
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


def test_a_folder_with_another_run_is_left_alone(recipe: Recipe) -> None:
    folder = train(recipe, log=str).folder
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(RosaError, match="holds another run"):
        train(replace(recipe, seed=1), log=str)
    with pytest.raises(RosaError, match="already finished"):
        train(recipe, resume=True, log=str)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_an_invalid_choice_of_layers_leaves_the_folder_free(recipe: Recipe) -> None:
    invalid = replace(recipe, dls=DlsConfig(layers=[99]))
    with pytest.raises(RosaError, match="names 99"):
        train(invalid, log=str)
    corrected = replace(recipe, dls=DlsConfig(layers=[0]), max_steps=2)
    assert train(corrected, log=str).finished


def test_resuming_another_recipe_raises(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, step=2)
    train(recipe, log=str)
    with pytest.raises(RosaError, match=r"`learning_rate` \(0.02, now 0.5\)"):
        train(replace(recipe, learning_rate=0.5), resume=True, log=str)


def test_a_folder_in_use_raises(recipe: Recipe) -> None:
    Path(recipe.output_dir).mkdir()
    with (
        lock_folder(Path(recipe.output_dir)),
        pytest.raises(RosaError, match="another run is using the folder"),
    ):
        train(recipe, log=str)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "rng_state.pth"])
def test_a_cut_checkpoint_is_passed_over(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    interrupt_at(monkeypatch, step=9)
    folder = train(recipe, log=str).folder
    newest = folder / "checkpoint-9" / name
    newest.write_bytes(newest.read_bytes()[:-200])
    said: list[str] = []
    assert train(recipe, resume=True, log=said.append).finished
    assert "resuming after step 8" in said


def test_a_damaged_recipe_of_the_run_is_named(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, step=2)
    folder = train(recipe, log=str).folder
    for damage in (b"", b"a: [", b"\xff\xfe"):
        (folder / "recipe.yaml").write_bytes(damage)
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
    recipe: Recipe, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(model_folder.parent)
    folder = train(replace(recipe, model=model_folder.name, max_steps=2), log=str).folder
    monkeypatch.chdir(tmp_path)
    assert load(str(folder)).base == str(model_folder.resolve())


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
    recipe: Recipe, tmp_path: Path
) -> None:
    plain = adapter(train(recipe, log=str).folder)
    saving = replace(recipe, gradient_checkpointing=True, output_dir=str(tmp_path / "saving"))
    for key, tensor in adapter(train(saving, log=str).folder).items():
        assert torch.allclose(tensor, plain[key], atol=1e-5), key


def test_bf16_trains_with_a_float32_adapter(recipe: Recipe) -> None:
    folder = train(replace(recipe, precision="bf16"), log=str).folder
    losses = [line["loss"] for line in lines(folder / "metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    assert {tensor.dtype for tensor in adapter(folder).values()} == {torch.float32}


def test_tensorboard_sees_the_loss(recipe: Recipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(replace(recipe, report_to=["tensorboard"], max_steps=4), log=str).folder
    [events] = folder.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events)).Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["lora", "ln_tuning", "vera"])
def test_other_methods_train_by_name_with_layer_selection(recipe: Recipe, method: str) -> None:
    other = replace(recipe, method=method, adapter=load_method(method).kwargs, max_steps=4)
    result = train(other, log=str)
    assert load(str(result.folder)).adapter == str(result.folder)
    assert lines(result.folder / "dls_history.jsonl")[0]["step"] == 3


@pytest.mark.parametrize("layer_selection", [False, True])
def test_adalora_reallocates_its_ranks(recipe: Recipe, layer_selection: bool) -> None:
    keys = {**load_method("adalora").kwargs, "target_r": 2, "tinit": 2, "tfinal": 4, "deltaT": 1}
    adalora = replace(recipe, method="adalora", adapter=keys)
    adalora = adalora if layer_selection else replace(adalora, dls=None)
    folder = train(adalora, log=str).folder
    assert (folder / "dls_history.jsonl").exists() == layer_selection
    assert load(str(folder)).adapter == str(folder)
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert 0 < sum(map(sum, pattern.values())) < 12 * len(pattern)
