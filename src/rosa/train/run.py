"""`rosa train` in Python: a recipe in, a run folder with the adapter out, on TRL's SFTTrainer."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import TrainerCallback, set_seed

from rosa.common.distributed import (
    init_process_group,
    is_main_process,
    run_on_main_process,
    split_step,
    world_size,
)
from rosa.common.files import lock_folder, translate_disk_errors
from rosa.data.prompts import TEMPLATE_KEY, end_of_turn
from rosa.data.sources import load_located_rows
from rosa.data.splits import hold_out, sample
from rosa.data.token_cache import tokenize_rows_cached
from rosa.data.tokenization import TokenizedRows, fingerprint_of, prompt_template
from rosa.errors import RosaError, one_line
from rosa.methods.peft_methods import ATTACH_ERRORS, set_default_targets
from rosa.methods.registry import method_config
from rosa.models.devices import auto_precision, pick_device
from rosa.models.loading import (
    check_vocabulary,
    load_base_model,
    load_tokenizer,
    tokenizer_source,
)
from rosa.train.adapter_from import check_adapter_from, load_weights, trainable_config
from rosa.train.callbacks import MetricsWriter, ProgressReport, StopOnSignal
from rosa.train.costs import CostMeter, Costs, run_costs, write_costs
from rosa.train.model_card import write_model_card
from rosa.train.packing import check_method_packs, check_rows_stay_apart, pack_rows
from rosa.train.plots import draw_layers, draw_loss, read_history
from rosa.train.recipe import Recipe, check_recipe
from rosa.train.run_folder import RunFolder, drop_lines_after, step_of
from rosa.train.signals import stop_on_signals
from rosa.train.trainer import (
    GuardedTrainer,
    PreparedRun,
    build_trainer,
    check_selection,
    warmup_steps,
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train` returns.

    Attributes:
        folder: the run's folder, with the adapter if `finished`.
        steps: optimizer steps done, of `total_steps`.
        finished: False if a signal stopped the run; `--resume` continues it.
        loss: the last logged training loss, in nats per token that has a label.
        trainable: number of trainable parameters.
        costs: time, memory and size; None unless `finished`, and outside the main process.
    """

    folder: Path
    steps: int
    total_steps: int
    finished: bool
    loss: float | None
    trainable: int
    costs: Costs | None = None


def train(recipe: Recipe, *, resume: bool = False, log: Log = print) -> TrainResult:
    """Fine-tunes as the recipe says; Ctrl-C saves a checkpoint and returns.

    Args:
        recipe: the run.
        resume: continue from the folder's last checkpoint.
        log: receives lines for the terminal (row counts, parameters) in the main process.

    Raises:
        RosaError: bad model, data, keys or folder, or a full disk.
        DivergedError: a loss or a trained weight is not finite.
    """
    # TRL and Transformers still call their own deprecated names; users can do nothing about it.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated")
    check_recipe(recipe)
    if recipe.precision == "fp16" and pick_device().type != "cuda":
        raise RosaError("precision fp16 trains on CUDA devices only; use bf16, float32 or auto")
    split_step(recipe.batch_size, recipe.gradient_accumulation, world_size())
    init_process_group(use_cpu=pick_device().type == "cpu")
    if not is_main_process():
        log = _discard
    folder = RunFolder(Path(recipe.output_dir))
    run_on_main_process(lambda: folder.check(recipe, resume))
    if resume:
        recipe = folder.as_started(recipe)
    if recipe.precision == "auto":  # recorded, so that a resumed run keeps it on any device
        recipe = replace(recipe, precision=auto_precision(pick_device()))
    # Everything that may be wrong is read before anything is written.
    if recipe.packing:
        check_method_packs(recipe)
    if recipe.adapter_from:
        check_adapter_from(recipe.adapter_from, recipe.model, recipe.method, recipe.adapter)
    source = tokenizer_source(recipe.adapter_from or recipe.model, recipe.model)
    tokenizer = load_tokenizer(source, trust_remote_code=recipe.trust_remote_code)
    train_set, validation_set = load_tokenized_rows(recipe, tokenizer)
    log(f"training rows: {train_set.report()}")
    if validation_set.rows:
        log(f"validation rows: {validation_set.report()}")
    if recipe.packing:
        train_set.rows = pack_rows(train_set.rows, recipe.max_length, recipe.seed)
        log(f"packed into {len(train_set.rows)} sequences of at most {recipe.max_length} tokens")
    if recipe.adapter_from:
        log(f"training the adapter {recipe.adapter_from} further")
    set_seed(recipe.seed)
    total_steps = planned_steps(recipe, len(train_set.rows))
    warn_of_long_warmup(recipe, total_steps)
    model = build_model(recipe, total_steps)
    check_vocabulary(model, tokenizer, recipe.model)
    log(describe_parameters(model))
    prepared = PreparedRun(recipe, model, tokenizer, train_set, validation_set, total_steps)
    check_selection(prepared)
    if recipe.packing:
        check_rows_stay_apart(model, recipe.model)
    held = lock_folder(folder.path) if is_main_process() else nullcontext()
    with held, translate_disk_errors(folder.path, lambda: _resume_hint(folder)):
        checkpoint = run_on_main_process(lambda: _open(folder, prepared, resume))
        return _run(prepared, folder, checkpoint, log)


def _discard(_line: str) -> None:
    """The log of all processes but the main one."""


def _open(folder: RunFolder, run: PreparedRun, resume: bool) -> Path | None:
    """Claims the folder; returns the checkpoint to resume from, after which it drops records."""
    rows = fingerprint_of(run.train_set.rows, run.validation_set.rows)
    checkpoint = folder.claim(run.recipe, resume, rows)
    folder.drop_saving()
    drop_lines_after(folder.metrics, step_of(checkpoint) if checkpoint else 0)
    return checkpoint


def _resume_hint(folder: RunFolder) -> str:
    """How to continue after a full disk; removes the incomplete checkpoint, which takes space."""
    if is_main_process():
        folder.drop_saving()
    kept = folder.checkpoints()
    where = f"after step {step_of(kept[-1])}" if kept else "from the start"
    return f"free some space, then rerun with --resume to continue {where}"


def _run(
    prepared: PreparedRun, folder: RunFolder, checkpoint: Path | None, log: Log
) -> TrainResult:
    if checkpoint:
        log(f"resuming after step {step_of(checkpoint)}")
    stopper, meter = StopOnSignal(), CostMeter()
    progress = ProgressReport(meter)
    callbacks: list[TrainerCallback] = [stopper]
    if is_main_process():
        callbacks += [MetricsWriter(), progress]
    trainer = build_trainer(prepared, meter, callbacks)
    if not (checkpoint and trainer.load_finished(checkpoint)):
        with stop_on_signals(stopper), progress, meter:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _write_outputs(prepared.recipe, folder, trainer, meter)


def _write_outputs(
    recipe: Recipe, folder: RunFolder, trainer: GuardedTrainer, meter: CostMeter
) -> TrainResult:
    """Draws the plots; of a finished run, also writes the adapter, its costs and model card."""
    state = trainer.state
    model: Any = trainer.model
    finished = state.global_step >= state.max_steps
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    loss = losses[-1] if losses else None
    costs = None
    # FSDP gathers a sharded model's weights from every process.
    weights = trainer.accelerator.get_state_dict(model) if trainer.is_fsdp_enabled else None
    if is_main_process():
        folder.drop_saving()
        draw_loss(folder.metrics, folder.path / "loss.png")
        if folder.dls_history.is_file() and folder.dls_history.stat().st_size:
            draw_layers(read_history(folder.path), folder.path / "layers.png", folder.path.name)
        if finished:
            # Not the Trainer's `save_model`, which adds a pickle.
            model.save_pretrained(folder.draft, state_dict=weights)
            costs = run_costs(meter, model, folder.draft)
            tokenizer: Any = trainer.processing_class
            tokenizer.save_pretrained(folder.path)
            write_costs(costs, folder.path)
            write_model_card(folder.path, recipe, state.global_step, loss, state.log_history)
            folder.publish_draft()
    trainable, _ = model.get_nb_trainable_parameters()
    return TrainResult(
        folder.path, state.global_step, state.max_steps, finished, loss, trainable, costs
    )


def load_tokenized_rows(recipe: Recipe, tokenizer: Any) -> tuple[TokenizedRows, TokenizedRows]:
    """Training and validation rows of every source, sampled, split and tokenized."""
    rows = load_located_rows(recipe.data_sources, recipe.columns)
    rows = sample(rows, recipe.limit, recipe.seed)
    train_set, validation_set = (
        tokenize_rows_cached(
            part,
            tokenizer,
            max_length=recipe.max_length,
            overlong=recipe.overlong,
            train_on_prompt=recipe.train_on_prompt,
        )
        for part in hold_out(rows, recipe.validation, recipe.seed)
    )
    if not train_set.rows:
        raise RosaError(
            f"max_length {recipe.max_length} dropped all {train_set.dropped} rows; raise it"
        )
    templates = Counter(prompt_template(row) for _, _, row in rows)
    # Saved with the run's tokenizer, for `rosa chat`.
    tokenizer.init_kwargs[TEMPLATE_KEY] = templates.most_common(1)[0][0]
    if "chat" in templates:
        set_end_of_turn(tokenizer, chats_only=len(templates) == 1)
    return train_set, validation_set


def set_end_of_turn(tokenizer: Any, *, chats_only: bool) -> None:
    """Makes the token that ends a reply in the chat template the `eos_token` saved with the run.

    Warns where the template ends a reply with text alone.
    """
    end = end_of_turn(tokenizer)
    if end is None:
        warnings.warn(
            "the chat template writes no special token after a reply, so nothing teaches the model "
            "where a reply ends; use a tokenizer whose chat_template ends turns with a token",
            stacklevel=2,
        )
    elif chats_only:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def planned_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of the whole run, counted as the Trainer does."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    micro_steps = math.ceil(rows / recipe.batch_size)
    per_epoch = max(1, math.ceil(micro_steps / recipe.gradient_accumulation))
    return math.ceil(recipe.epochs * per_epoch)


def warn_of_long_warmup(recipe: Recipe, total_steps: int) -> None:
    """Warns where the learning rate never reaches its peak."""
    steps = warmup_steps(recipe, total_steps)
    if steps >= total_steps and recipe.schedule != "constant":  # which has no warm-up
        warnings.warn(
            f"warmup lasts {steps} steps and the run {total_steps}, so the learning rate never "
            f"reaches {recipe.learning_rate:g}; lower warmup or train longer",
            stacklevel=2,
        )


def build_model(recipe: Recipe, total_steps: int) -> Any:
    """The base model with the recipe's adapter, ready to train."""
    model = load_base_model(
        recipe.model,
        dtype=recipe.precision,
        quantization=recipe.quantization,
        attn_implementation=recipe.attn_implementation,
        trust_remote_code=recipe.trust_remote_code,
    )
    if recipe.adapter_from:
        config = trainable_config(model, recipe.adapter_from)
    else:
        config = method_config(recipe.method, recipe.adapter, total_steps=total_steps)
        set_default_targets(config, model.config.model_type)
    if hasattr(config, "dls"):
        config.dls = recipe.dls
    try:
        adapted: Any = get_peft_model(model, config)
    except RosaError:
        raise
    except ATTACH_ERRORS as error:
        raise RosaError(
            f"{recipe.method} cannot be attached to {recipe.model}: {one_line(error)}"
        ) from error
    for parameter in adapted.parameters():  # PEFT leaves norms and modules_to_save as they are
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.float()  # else a step of 1e-3 on a norm is lost
    if recipe.adapter_from:
        load_weights(adapted, recipe.adapter_from)
    base = Path(str(model.name_or_path))
    if base.is_dir():  # a relative path would be another folder elsewhere
        config.base_model_name_or_path = str(base.resolve())
    return adapted


def describe_parameters(model: Any) -> str:
    """`trainable parameters: 1,234 of 5,678 (21.733 %)`, by PEFT's rule."""
    trainable, total = model.get_nb_trainable_parameters()
    return f"trainable parameters: {trainable:,} of {total:,} ({100 * trainable / total:.3f} %)"
