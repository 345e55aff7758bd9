"""DLS in Transformers' Trainer and TRL's SFTTrainer: clipping, checkpoints, files, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from rosa import DlsCallback, DlsConfig, DynamicLayerSelection
from rosa.dls.attached import ATTACHED
from rosa.dls.callback import HISTORY_FILE
from rosa.errors import RosaError
from tests.support.dls_models import (
    LAYERS,
    VOCABULARY,
    decoder_layers,
    same,
    snapshot,
    tiny_llama,
    word_tokenizer,
)

NORMS = ["input_layernorm", "post_attention_layernorm"]
CONFIG = DlsConfig(interval=3, warmup=2, p_exploit=0.5, seed=1)
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

    What the callback does by itself is written out here, for comparison.
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
        self.trainer.dls = DynamicLayerSelection(model, optimizer, CONFIG, state.max_steps)


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> PlainLoop:
    """A finished run in which select and clip were called in this order by hand."""
    attach = AttachByHand()
    folder = tmp_path_factory.mktemp("by_hand")
    trainer = PlainLoop(lora(), arguments(folder), train_dataset=rows(), callbacks=[attach])
    attach.trainer = trainer
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "checkpointing",
    [None, {"use_reentrant": True}, {"use_reentrant": False}],
    ids=["plain", "reentrant", "non-reentrant"],
)
def test_the_callback_selects_before_the_trainer_clips(
    tmp_path: Path, by_hand: PlainLoop, checkpointing: dict[str, bool] | None
) -> None:
    changes = {}
    if checkpointing is not None:
        changes = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": checkpointing}
    recorder, callback, model = Recorder(), DlsCallback(CONFIG), lora()
    trainer = train(tmp_path, model, callback, recorder, **changes)

    assert callback.dls is not None
    assert callback.dls.history == by_hand.dls.history
    assert logged(trainer, "grad_norm") == logged(by_hand, "grad_norm")
    assert same(snapshot(model), snapshot(by_hand.model))

    choices = {record["step"]: record["selected"] for record in callback.dls.history}
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


def test_recorded_scores_do_not_depend_on_clipping(tmp_path: Path) -> None:
    first = DlsConfig(interval=1, warmup=0, p_exploit=1)
    records = []
    for clip in (0.01, 1e6):
        callback = DlsCallback(first)
        train(tmp_path / str(clip), lora(), callback, max_grad_norm=clip, max_steps=1)
        assert callback.dls is not None
        records.append(callback.dls.history)
    assert records[0] == records[1]


def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    models, histories = [], []
    for accumulate in (1, 2):
        model = tiny_llama()
        callback = DlsCallback(CONFIG)
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


def test_two_backward_passes_in_a_step_that_chooses_are_refused(tmp_path: Path) -> None:
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

    callback = DlsCallback(CONFIG)
    args = arguments(tmp_path, gradient_accumulation_steps=1)
    with pytest.raises(RosaError, match=r"step 3.*two backward passes"):
        Halves(lora(), args, train_dataset=rows(), callbacks=[callback]).train()
    assert callback.dls is not None
    assert callback.dls.step == 2


@pytest.mark.parametrize("restore_callbacks", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, restore_callbacks) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    # Five batches an epoch and two a step: the last step of an epoch has fewer.
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3}
    changes["restore_callback_states_from_checkpoint"] = restore_callbacks
    whole = lora()
    train(tmp_path / "whole", whole, DlsCallback(CONFIG), **changes)

    folder = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        train(folder, lora(), DlsCallback(CONFIG), Stop(), **changes)
    assert [record["step"] for record in history(folder)] == [3, 6]
    model = lora()
    train(folder, model, DlsCallback(CONFIG), resume=True, **changes)

    assert [record["step"] for record in history(folder)] == [3, 6, 9]
    ours, expected = folder / HISTORY_FILE, tmp_path / "whole" / HISTORY_FILE
    assert ours.read_bytes() == expected.read_bytes()
    assert same(snapshot(model), snapshot(whole))


def test_a_new_run_starts_a_new_history_file(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_text("old\n")
    callback = DlsCallback(CONFIG)
    train(tmp_path, lora(), callback)
    assert callback.dls is not None
    assert history(tmp_path) == callback.dls.history
    assert list(history(tmp_path)[0]) == ["step", "mode", "scores", "selected"]
    assert not list(tmp_path.glob("*.tmp"))


def test_chosen_layers_are_in_the_logs(tmp_path: Path) -> None:
    trainer = train(tmp_path, lora(), DlsCallback(CONFIG))
    chosen = {r["step"]: r["selected"] for r in history(tmp_path)}
    for entry in trainer.state.log_history:
        if "loss" in entry and entry["step"] in chosen:
            assert entry["dls_selected"] == chosen[entry["step"]]
    assert len(logged(trainer, "dls_selected")) == STEPS - 2


def test_checkpoint_without_dls_state_starts_anew_with_a_warning(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    train(tmp_path, lora(), max_steps=4, **changes)
    callback = DlsCallback(DlsConfig(interval=3, warmup=2))
    with pytest.warns(UserWarning, match="checkpoint of step 4 holds no DLS state"):
        train(tmp_path, lora(), callback, resume=True, **changes)
    assert [record["step"] for record in history(tmp_path)] == [6, 9]


def test_after_training_everything_is_given_back(tmp_path: Path) -> None:
    model = lora()
    wanted = [p.requires_grad for p in model.parameters()]
    callback = DlsCallback(CONFIG)
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

    model, callback = lora(), DlsCallback(CONFIG)
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
            if state.global_step == 5:
                raise KeyboardInterrupt

    model, other, old, new = lora(), lora(), DlsCallback(CONFIG), DlsCallback(RANDOM)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", model, old, Break())
    with pytest.raises(RosaError, match=r"call detach\(\)"):
        train(tmp_path / "one", model, new)
    assert old.dls is not None
    old.dls.detach()
    model.load_state_dict(other.state_dict())
    train(tmp_path / "one", model, new)
    train(tmp_path / "two", other, DlsCallback(RANDOM))
    assert history(tmp_path / "one") == history(tmp_path / "two")
    assert same(snapshot(model), snapshot(other))


@dataclasses.dataclass
class LoraWithDls(LoraConfig):
    dls: Any = None


@pytest.mark.parametrize("dls", [CONFIG, CONFIG.to_dict()])
def test_settings_come_from_the_adapter(tmp_path: Path, dls: Any) -> None:
    torch.manual_seed(0)
    config = LoraWithDls(r=2, target_modules=["q_proj"], dls=dls)
    model = get_peft_model(tiny_llama(torch.float32), config)
    callback = DlsCallback()
    train(tmp_path, model, callback, max_steps=3)
    assert callback.dls is not None
    assert callback.dls.config == CONFIG
    assert callback.config is None


def test_a_run_in_which_it_never_chose_warns_at_start_and_end(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="never chooses") as record:
        train(tmp_path, lora(), DlsCallback(DlsConfig(interval=40)), max_steps=2)
    sentences = [str(w.message) for w in record if "never chooses" in str(w.message)]
    assert len(sentences) == 2
    assert "in the 2 steps of this run" in sentences[1]
    assert history(tmp_path) == []


@pytest.mark.dls_cell(method="any", loop="any", engine="DeepSpeed", says="error")
def test_deepspeed_is_refused(tmp_path: Path) -> None:
    callback = DlsCallback(CONFIG)
    trainer = Trainer(
        tiny_llama(torch.float32), arguments(tmp_path), train_dataset=rows(), callbacks=[callback]
    )
    trainer.args.deepspeed = "zero2.json"
    with pytest.raises(RosaError, match=r"deepspeed='zero2\.json': use FSDP2"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_in_trl_s_sft_trainer(tmp_path: Path) -> None:
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
    recorder, callback = Recorder(), DlsCallback(CONFIG)
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
