"""DLS in Transformers' Trainer and TRL's SFTTrainer: clipping, checkpoints, files, errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rosa import DlsCallback, DlsConfig, DynamicLayerSelection
from rosa.dls.attached import ATTACHED
from rosa.dls.callback import adapter_config
from rosa.dls.choice import HISTORY_FILE
from rosa.errors import RosaError
from tests.support.dls_models import (
    EVERY_THIRD,
    LAYERS,
    NORMS,
    VOCABULARY,
    decoder_layers,
    same,
    snapshot,
    tiny_llama,
    word_tokenizer,
)

RANDOM = DlsConfig(interval=3, p_exploit=0.0, warmup=0, seed=2)
STEPS = 9


def rows(count: int = 24) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(1, VOCABULARY, (count, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def lora() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=NORMS)
    return get_peft_model(tiny_llama(torch.float32), config)


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**settings, **changes})


def train(
    folder: Path, model: nn.Module, *callbacks: TrainerCallback, resume: Any = None, **changes: Any
) -> Trainer:
    args = arguments(folder, **changes)
    trainer = Trainer(model, args, train_dataset=rows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / HISTORY_FILE).read_text().splitlines()]


def logged(trainer: Trainer, key: str) -> list[Any]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class Recorder(TrainerCallback):
    """Keeps which layers have gradients when the Trainer has clipped and is about to step."""

    def __init__(self) -> None:
        self.with_gradient: list[list[int]] = []
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        layers = decoder_layers(model)
        self.with_gradient.append(
            [
                i
                for i, layer in enumerate(layers)
                if any(p.grad is not None for p in layer.parameters())
            ]
        )
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.norms.append(torch.cat(gradients).norm().item())


class PlainLoop(Trainer):
    """The same training with DLS in the loop's own hand: select, then clip.

    What the callback does is written out here, for comparison.
    """

    dls: DynamicLayerSelection

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        self.dls.select()
        return super()._clip_grad_norm(model)


class AttachByHand(TrainerCallback):
    def __init__(self) -> None:
        self.trainer: PlainLoop | None = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        assert self.trainer is not None
        self.trainer.dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, state.max_steps)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> PlainLoop:
    """A finished run in which select and clip were called in this order by hand."""
    attach = AttachByHand()
    folder = tmp_path_factory.mktemp("by_hand")
    trainer = PlainLoop(lora(), arguments(folder), train_dataset=rows(), callbacks=[attach])
    attach.trainer = trainer
    trainer.train()
    return trainer


class Finished:
    """A run with the callback, in a folder that has an older run's file."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.recorder, self.callback = folder, Recorder(), DlsCallback(EVERY_THIRD)
        (folder / HISTORY_FILE).write_text("old\n")
        self.trainer = train(folder, lora(), self.callback, self.recorder, **changes)
        assert self.callback.dls is not None
        self.history = self.callback.dls.history


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.mark.parametrize("use_reentrant", [None, True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_callback_selects_before_the_trainer_clips(
    tmp_path: Path, by_hand: PlainLoop, finished: Finished, use_reentrant: bool | None
) -> None:
    run = finished
    if use_reentrant is not None:
        kwargs = {"use_reentrant": use_reentrant}
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
        run = Finished(tmp_path, **changes)
    trainer, recorder = run.trainer, run.recorder
    if hasattr(Trainer, "_clip_grad_norm"):  # older Trainers do not let a subclass come before it
        assert run.history == by_hand.dls.history
        assert logged(trainer, "grad_norm") == logged(by_hand, "grad_norm")
        assert same(snapshot(trainer.model), snapshot(by_hand.model))

    choices = {record["step"]: record["selected"] for record in run.history}
    selected = list(range(LAYERS))
    for t in range(1, STEPS + 1):
        selected = choices.get(t, selected)
        assert recorder.with_gradient[t - 1] == selected
        # The bound is what remains: the divisor was the norm of these layers alone.
        assert recorder.norms[t - 1] == pytest.approx(0.05, rel=1e-4)
    assert min(logged(trainer, "grad_norm")) > 0.05


def test_scores_under_a_loss_scale_are_those_of_the_unscaled_loss() -> None:
    """fp16: when the Trainer's backward ends, gradients still carry the scaler's factor."""
    histories = []
    for scale in (1.0, 1024.0):
        model, callback = lora(), DlsCallback(DlsConfig(interval=1, warmup=0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callback.dls = DynamicLayerSelection(model, optimizer, callback.config)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        wrapper = SimpleNamespace(
            scaler=scaler, gradient_state=SimpleNamespace(sync_gradients=True)
        )
        callback._select_before_clipping(callback.dls, wrapper)
        row = rows(1)[0]
        loss = model(**{key: value[None] for key, value in row.items()}).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        histories.append(callback.dls.history)
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_recorded_scores_do_not_depend_on_clipping(tmp_path: Path) -> None:
    first = DlsConfig(interval=1, warmup=0, p_exploit=1)
    records = []
    for clip in (0.01, 1e6):
        callback = DlsCallback(first)
        train(tmp_path / str(clip), lora(), callback, max_grad_norm=clip, max_steps=1)
        assert callback.dls is not None
        records.append(callback.dls.history)
    assert records[0] == records[1]


@pytest.mark.slow
def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    models, histories = [], []
    for accumulate in (1, 2):
        model = tiny_llama()
        callback = DlsCallback(EVERY_THIRD)
        train(
            tmp_path / str(accumulate),
            model,
            callback,
            optim="sgd",
            gradient_accumulation_steps=accumulate,
            per_device_train_batch_size=4 // accumulate,
        )
        assert callback.dls is not None
        models.append(model)
        histories.append(callback.dls.history)
    for one, two in zip(*histories, strict=True):
        assert one["selected"] == two["selected"]
        assert one["scores"] == pytest.approx(two["scores"], rel=1e-4)
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)


def test_two_backward_passes_in_a_step_that_chooses_raise(tmp_path: Path) -> None:
    # The first would choose by half of the gradients, and the Trainer gives no later moment.
    class Halves(Trainer):
        def training_step(self, model: nn.Module, inputs: Any, *args: Any) -> torch.Tensor:
            losses = [
                super(Halves, self).training_step(
                    model, {key: value[half] for key, value in inputs.items()}, *args
                )
                for half in (slice(0, 1), slice(1, 2))
            ]
            return torch.stack(losses).sum()

    callback = DlsCallback(EVERY_THIRD)
    args = arguments(tmp_path, gradient_accumulation_steps=1)
    with pytest.raises(RosaError, match=r"step 3 has two backward passes"):
        Halves(lora(), args, train_dataset=rows(), callbacks=[callback]).train()
    assert callback.dls is not None
    assert callback.dls.step == 2


# Five batches an epoch and two a step: the last step of an epoch has fewer.
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[torch.Tensor]]:
    folder, whole = tmp_path_factory.mktemp("whole"), lora()
    train(folder, whole, DlsCallback(EVERY_THIRD), **SAVING)
    return (folder / HISTORY_FILE).read_bytes(), snapshot(whole)


@pytest.mark.parametrize("restore_callbacks", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: tuple[bytes, list[torch.Tensor]], restore_callbacks: bool
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    changes = {**SAVING, "restore_callback_states_from_checkpoint": restore_callbacks}
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, lora(), DlsCallback(EVERY_THIRD), Stop(), **changes)
    assert [record["step"] for record in history(tmp_path)] == [3, 6]
    model = lora()
    train(tmp_path, model, DlsCallback(EVERY_THIRD), resume=True, **changes)

    whole_file, whole_weights = uninterrupted
    assert [record["step"] for record in history(tmp_path)] == [3, 6, 9]
    assert (tmp_path / HISTORY_FILE).read_bytes() == whole_file
    assert same(snapshot(model), whole_weights)


def test_a_new_run_starts_a_new_history_file(finished: Finished) -> None:
    assert history(finished.folder) == finished.history
    assert list(history(finished.folder)[0]) == ["step", "mode", "scores", "selected"]
    assert [file.name for file in finished.folder.iterdir()] == [HISTORY_FILE]


def test_chosen_layers_are_in_the_logs(finished: Finished) -> None:
    chosen = {r["step"]: r["selected"] for r in finished.history}
    for entry in finished.trainer.state.log_history:
        if "loss" in entry and entry["step"] in chosen:
            assert entry["dls_selected"] == chosen[entry["step"]]
    assert len(logged(finished.trainer, "dls_selected")) == STEPS - 2


def test_checkpoint_without_dls_state_starts_again_with_a_warning(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    train(tmp_path, lora(), max_steps=4, **changes)
    callback = DlsCallback(DlsConfig(interval=3, warmup=2))
    with pytest.warns(UserWarning, match="checkpoint of step 4 has no DLS state"):
        train(tmp_path, lora(), callback, resume=True, **changes)
    assert [record["step"] for record in history(tmp_path)] == [6, 9]


def test_after_training_everything_is_given_back(tmp_path: Path) -> None:
    model = lora()
    wanted = [p.requires_grad for p in model.parameters()]
    callback = DlsCallback(EVERY_THIRD)
    trainer = train(tmp_path, model, callback)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not getattr(model, ATTACHED, False)
    trainer.train()  # a second run attaches again
    assert callback.dls is not None
    assert len(callback.dls.history) == 3


def test_a_run_that_broke_off_can_be_started_again(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        broken = False

        def on_step_end(self, args, state, control, **kwargs) -> None:
            if not self.broken:
                self.broken = True
                raise RuntimeError

    model, callback = lora(), DlsCallback(EVERY_THIRD)
    trainer = Trainer(
        model, arguments(tmp_path), train_dataset=rows(), callbacks=[callback, Break()]
    )
    with pytest.raises(RuntimeError):
        trainer.train()
    trainer.train()
    assert [record["step"] for record in history(tmp_path)] == [3, 6, 9]


def test_another_callback_can_take_over_from_a_run_that_broke_off(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    model, other, old, new = lora(), lora(), DlsCallback(EVERY_THIRD), DlsCallback(RANDOM)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", model, old, Break())
    with pytest.raises(RosaError, match=r"call detach\(\)"):
        train(tmp_path / "one", model, new)
    assert old.dls is not None
    old.dls.detach()
    model.load_state_dict(other.state_dict())
    train(tmp_path / "one", model, new, max_steps=4)
    train(tmp_path / "two", other, DlsCallback(RANDOM), max_steps=4)
    assert history(tmp_path / "one") == history(tmp_path / "two")
    assert same(snapshot(model), snapshot(other))


@dataclasses.dataclass
class LoraWithDls(LoraConfig):
    dls: Any = None


def test_settings_come_from_the_adapter(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(torch.float32), LoraWithDls(target_modules=["q_proj"]))
    assert adapter_config(model) is None
    for dls in (EVERY_THIRD.to_dict(), EVERY_THIRD):  # as read from a file, and as made
        model.peft_config["default"].dls = dls
        assert adapter_config(model) == EVERY_THIRD
    callback = DlsCallback()
    train(tmp_path, model, callback, max_steps=1)
    assert callback.dls is not None
    assert callback.dls.config == EVERY_THIRD
    assert callback.config is None


def test_a_run_in_which_it_never_chose_warns_at_start_and_end(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never selects") as record:
        train(tmp_path, lora(), DlsCallback(DlsConfig(interval=40)), max_steps=2)
    sentences = [str(w.message) for w in record if "never selects" in str(w.message)]
    assert len(sentences) == 2
    assert "in the 2 steps of this run" in sentences[1]
    assert history(tmp_path) == []


@pytest.mark.dls_cell(method="any", loop="any", engine="DeepSpeed", says="error")
def test_deepspeed_raises(tmp_path: Path) -> None:
    callback = DlsCallback(EVERY_THIRD)
    trainer = Trainer(
        tiny_llama(torch.float32), arguments(tmp_path), train_dataset=rows(), callbacks=[callback]
    )
    trainer.args.deepspeed = "zero2.json"
    with pytest.raises(RosaError, match=r"deepspeed='zero2\.json': use FSDP2"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


@pytest.mark.slow
def test_in_trl_s_sft_trainer(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in rows()])
    settings = dataclasses.asdict(arguments(tmp_path))
    keep = ("output_dir", "max_steps", "per_device_train_batch_size", "max_grad_norm")
    args = SFTConfig(
        **{key: settings[key] for key in keep},
        gradient_accumulation_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
    )
    recorder, callback = Recorder(), DlsCallback(EVERY_THIRD)
    trainer = SFTTrainer(
        tiny_llama(torch.float32),
        args=args,
        train_dataset=data,
        processing_class=word_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
        callbacks=[callback, recorder],
    )
    trainer.train()
    choices = {record["step"]: record["selected"] for record in history(tmp_path)}
    assert list(choices) == [3, 6, 9]
    assert recorder.with_gradient[2:] == [choices[t] for t in (3, 3, 3, 6, 6, 6, 9)]
