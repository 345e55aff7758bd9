"""`rosa train` in Python: a recipe in, a run folder with the adapter out, on TRL's SFTTrainer."""

from __future__ import annotations

import math
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from rosa.dls import DlsCallback
from rosa.errors import RosaError
from rosa.study.card import write_model_card
from rosa.study.examples import Examples, tokenize_records
from rosa.study.lock import folder_in_use
from rosa.study.methods import method_config
from rosa.study.models import (
    check_vocabulary,
    load_base_model,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from rosa.study.plots import draw_layers, draw_loss
from rosa.study.progress import AdaLoraAllocation, MetricsWriter, Progress, StopOnSignal
from rosa.study.recipe import Recipe
from rosa.study.run_folder import RunFolder, drop_lines_after
from rosa.study.sources import hold_out, sample, training_records

CHECKPOINTS_PER_RUN = 10


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` left behind.

    Attributes:
        folder: the run's folder; holds the adapter if `finished`.
        steps: optimizer steps done, of `total_steps`.
        finished: False when a signal stopped the run; `--resume` goes on.
        loss: the last logged training loss, in nats per response token.
        trainable: number of trainable parameters.
    """

    folder: Path
    steps: int
    total_steps: int
    finished: bool
    loss: float | None
    trainable: int


class GuardedTrainer(SFTTrainer):
    """SFTTrainer that stops at the first loss or weight that is not a number.

    What is on disk then is the last good checkpoint.
    """

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            RosaError: the loss is NaN or infinite.
        """
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss).all():
            self._stop_not_finite("the loss")
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
            self._stop_not_finite("a trained weight")
        super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run writes a card of its own (`rosa.study.card`)."""

    def _stop_not_finite(self, what: str) -> None:
        good = RunFolder(Path(str(self.args.output_dir))).checkpoints()
        kept = (
            f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was written yet"
        )
        raise RosaError(
            f"{what} is not a finite number after step {self.state.global_step}: {kept}; start "
            "again in another output_dir with a lower learning_rate, or look at the data and the "
            "base model's weights"
        )


def train(
    recipe: Recipe, *, resume: bool = False, say: Callable[[str], None] = print
) -> TrainResult:
    """Fine-tune as the recipe says; Ctrl-C saves a checkpoint and returns.

    Args:
        recipe: the run.
        resume: go on from the folder's last checkpoint.
        say: receives the lines a person reads (row counts, parameters).

    Raises:
        RosaError: bad model, data, keys or folder, or a loss that is not finite.
    """
    # TRL and Transformers still call their own deprecated names; users can do nothing about it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    check_recipe(recipe)
    folder = RunFolder(Path(recipe.output_dir))
    folder.check(recipe, resume)
    # Read everything that may be wrong before the folder is claimed.
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    train_set, validation_set = load_examples(recipe, tokenizer)
    say(f"training rows: {train_set.report()}")
    if validation_set.rows:
        say(f"validation rows: {validation_set.report()}")
    set_seed(recipe.seed)
    total_steps = planned_steps(recipe, len(train_set.rows))
    model = build_model(recipe, total_steps)
    check_vocabulary(model, tokenizer, recipe.model)
    say(describe_parameters(model))
    with folder_in_use(folder.path):
        checkpoint = folder.claim(recipe, resume)
        return _run(recipe, folder, checkpoint, model, tokenizer, train_set, validation_set, say)


def _run(
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Path | None,
    model: Any,
    tokenizer: Any,
    train_set: Examples,
    validation_set: Examples,
    say: Callable[[str], None],
) -> TrainResult:
    """Train in a folder that is this run's, from a checkpoint or from the start."""
    total_steps = planned_steps(recipe, len(train_set.rows))
    step = int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    drop_lines_after(folder.metrics, step)
    if checkpoint:
        say(f"resuming after step {step}")

    stopper, progress = StopOnSignal(), Progress()
    watchers: list[TrainerCallback] = [stopper, MetricsWriter(), progress]
    arguments = trainer_arguments(recipe, total_steps, bool(validation_set.rows))
    trainer = build_trainer(
        recipe, arguments, model, tokenizer, train_set, validation_set, watchers
    )
    with stop_on_signals(stopper), progress:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return conclude(recipe, folder, trainer)


def conclude(recipe: Recipe, folder: RunFolder, trainer: GuardedTrainer) -> TrainResult:
    """Draws what happened; writes the adapter and its card if the run came to its end."""
    state = trainer.state
    model: Any = trainer.model
    tokenizer: Any = trainer.processing_class
    finished = state.global_step >= state.max_steps
    if finished:
        # Not `save_model`: it adds a pickle, and an adapter's folder holds none.
        model.save_pretrained(folder.path)
        tokenizer.save_pretrained(folder.path)
    draw_loss(folder.metrics, folder.path / "loss.png")
    draw_layers(folder.dls_history, folder.path / "layers.png")
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    result = TrainResult(
        folder=folder.path,
        steps=state.global_step,
        total_steps=state.max_steps,
        finished=finished,
        loss=losses[-1] if losses else None,
        trainable=model.get_nb_trainable_parameters()[0],
    )
    if finished:
        write_model_card(recipe, result, state.log_history)
    return result


def check_recipe(recipe: Recipe) -> None:
    """Values whose type is right and whose meaning is not.

    Raises:
        RosaError: names the key, its value and the range.
    """
    positive = ("max_length", "epochs", "batch_size", "gradient_accumulation", "learning_rate")
    for key in (*positive, "log_steps", "keep_checkpoints"):
        if not 0 < getattr(recipe, key) < math.inf:
            raise RosaError(f"{key} must be a number above 0, not {getattr(recipe, key)}")
    for key in ("limit", "max_steps", "save_steps"):
        value = getattr(recipe, key)
        if value is not None and value <= 0:
            raise RosaError(f"{key} must be above 0 or null, not {value}")
    for key in ("validation", "warmup", "weight_decay", "max_grad_norm"):
        if not 0 <= getattr(recipe, key) < math.inf:
            raise RosaError(f"{key} must be 0 or more, not {getattr(recipe, key)}")
    if not 0 <= recipe.seed < 2**32:
        raise RosaError(f"seed must be from 0 to 4294967295, not {recipe.seed}")
    for key in ("model", "output_dir", "data"):
        if not getattr(recipe, key):
            raise RosaError(f"{key} is empty; name one")
    if recipe.method == "adalora" and recipe.dls is not None:
        raise RosaError(
            "adalora decides its ranks by the gradients of every layer, and dls leaves the frozen "
            "layers without any; set dls: null"
        )
    check_trackers(recipe.trackers)


def check_trackers(names: list[str]) -> None:
    """Every tracker must be known to the Trainer and installed."""
    from importlib.util import find_spec

    known = ("tensorboard", "wandb", "trackio")
    for name in names:
        if name not in known:
            raise RosaError(f"report_to: '{name}' is not one of {', '.join(known)}")
        if find_spec(name) is None:
            raise RosaError(f"report_to: {name} is not installed; `pip install {name}` or drop it")


def load_examples(recipe: Recipe, tokenizer: Any) -> tuple[Examples, Examples]:
    """Training and validation rows of every source, sampled, split and tokenised."""
    rows = [
        (source, number, record)
        for source in recipe.data_sources
        for number, record in enumerate(training_records(source), start=1)
    ]
    rows = sample(rows, recipe.limit, recipe.seed)
    parts = []
    for part in hold_out(rows, recipe.validation, recipe.seed):
        parts.append(
            tokenize_records(
                part,
                tokenizer,
                max_length=recipe.max_length,
                overlong=recipe.overlong,
                train_on_prompt=recipe.train_on_prompt,
            )
        )
    if not parts[0].rows:
        raise RosaError(
            f"max_length {recipe.max_length} dropped all {parts[0].dropped} rows; raise it"
        )
    return parts[0], parts[1]


def planned_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run, counted as the Trainer does."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    micro_steps = math.ceil(rows / recipe.batch_size)
    per_epoch = max(1, math.ceil(micro_steps / recipe.gradient_accumulation))
    return math.ceil(recipe.epochs * per_epoch)


def build_model(recipe: Recipe, total_steps: int) -> Any:
    """The base model with the recipe's adapter, ready to train."""
    model = load_base_model(
        recipe.model,
        dtype=recipe.precision,
        trust_remote_code=recipe.trust_remote_code,
    )
    config = method_config(recipe.method, recipe.adapter, total_steps=total_steps)
    if hasattr(config, "dls"):
        config.dls = recipe.dls
    try:
        adapted = get_peft_model(model, config)
    except RosaError:
        raise
    except (ValueError, TypeError, re.error) as error:
        reason = " ".join(str(error).split())
        raise RosaError(
            f"{recipe.method} cannot be attached to {recipe.model}: {reason}"
        ) from error
    base = Path(str(model.name_or_path))
    if base.is_dir():  # a relative path would be another folder elsewhere
        config.base_model_name_or_path = str(base.resolve())
    return adapted


def describe_parameters(model: Any) -> str:
    """`trainable parameters: 1,234 of 5,678 (21.733 %)`, by PEFT's rule."""
    trainable, total = model.get_nb_trainable_parameters()
    return f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / total:.3f} %)"


def build_trainer(
    recipe: Recipe,
    arguments: SFTConfig,
    model: Any,
    tokenizer: Any,
    train_set: Examples,
    validation_set: Examples,
    watchers: list[TrainerCallback],
) -> GuardedTrainer:
    """The trainer with the run's callbacks; layer selection comes before what reports on it."""
    selection = [] if recipe.dls is None else [DlsCallback(recipe.dls)]
    callbacks: list[TrainerCallback] = [*selection, *watchers]
    if recipe.method == "adalora":
        callbacks.append(AdaLoraAllocation())
    trainer = GuardedTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(train_set.rows),
        eval_dataset=Dataset.from_list(validation_set.rows) if validation_set.rows else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


def trainer_arguments(recipe: Recipe, total_steps: int, has_validation: bool) -> SFTConfig:
    """The recipe in the Trainer's words."""
    save_steps = recipe.save_steps or max(1, total_steps // CHECKPOINTS_PER_RUN)
    device = pick_device()
    half = pick_dtype(recipe.precision, device) == torch.bfloat16
    return SFTConfig(
        output_dir=recipe.output_dir,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=half,
        gradient_checkpointing=recipe.gradient_checkpointing,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=save_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=recipe.keep_checkpoints,
        load_best_model_at_end=has_validation,
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        logging_steps=recipe.log_steps,
        report_to=recipe.trackers or "none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_length=None,  # rows are cut in `tokenize_records`, with a count
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device.type == "cuda",
    )


@contextmanager
def stop_on_signals(stopper: StopOnSignal) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run after its step, saved; the second at once."""

    def request(number: int, frame: Any) -> None:
        if stopper.requested:
            raise KeyboardInterrupt
        stopper.requested = True

    signals = [signal.SIGINT, signal.SIGTERM]
    try:
        before = [signal.signal(s, request) for s in signals]
    except ValueError:  # not in the main thread: leave the caller's handlers alone
        yield
        return
    try:
        yield
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
