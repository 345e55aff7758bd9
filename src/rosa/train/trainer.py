"""TRL's SFTTrainer as a run uses it: its arguments, its callbacks, and how it stops."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from rosa.common.distributed import split_step, world_size
from rosa.common.parameter_groups import split_norms
from rosa.data.length_grouping import LengthGroupedSampler, pass_epochs_to_sampler
from rosa.data.tokenization import TokenizedRows
from rosa.dls import DlsCallback, DynamicLayerSelection
from rosa.errors import DivergedError
from rosa.models.devices import pick_device, pick_dtype
from rosa.train.adalora import (
    AdaLoraAllocation,
    adalora_of,
    all_ranks,
    orthogonality_loss,
    save_estimates,
)
from rosa.train.costs import CostMeter
from rosa.train.loss import (
    adapted_head_allowed,
    score_supervised_positions,
    uses_trl_kernel,
)
from rosa.train.norm_deltas import load_deltas, save_deltas
from rosa.train.recipe import Recipe
from rosa.train.run_folder import RunFolder
from rosa.train.sharded_checkpoint import is_sharded, load_sharded_optimizer, load_sharded_weights

CHECKPOINTS_PER_RUN = 10
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class PreparedRun:
    """A recipe with everything loaded that it names."""

    recipe: Recipe
    model: Any
    tokenizer: Any
    train_set: TokenizedRows
    validation_set: TokenizedRows
    total_steps: int


def check_selection(run: PreparedRun) -> None:
    """Raises RosaError if DLS cannot work in this run, before anything of it is on disk.

    Not under FSDP, where DLS attaches after the Trainer has sharded the model.
    """
    if run.recipe.dls is None or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    trained = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself repeats them
        optimizer = torch.optim.SGD(trained, lr=0.0)
        DynamicLayerSelection(run.model, optimizer, run.recipe.dls, run.total_steps).detach()


class GuardedTrainer(SFTTrainer):
    """SFTTrainer that raises at the first loss or weight that is not finite.

    The loss is that of the supervised positions alone (`rosa.train.loss`). A checkpoint is written
    to the run folder's `saving` and gets its name when it is complete, so that the last one on disk
    is always good.
    """

    def __init__(
        self,
        model: Any,
        *args: Any,
        meter: CostMeter,
        keep_checkpoints: int,
        norm_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._saving: Path | None = None  # the folder of a checkpoint that is being written
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        forward = base.forward
        with adapted_head_allowed(model):
            super().__init__(model, *args, **kwargs)
        if not uses_trl_kernel(base, self.args.device):
            score_supervised_positions(base, forward)
        self._meter = meter
        self._keep_checkpoints = keep_checkpoints
        self._norm_learning_rate = norm_learning_rate
        self.add_callback(meter)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass.

        Raises:
            DivergedError: the loss is NaN or infinite.
        """
        # A packed batch has neither padding nor a mask.
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        self._meter.count(int(self.accelerator.reduce(mask.sum())))
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss).all():
            self._raise_diverged("the loss")
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The Trainer's; the norms have groups of their own where they have their own rate."""
        optimizer = super().create_optimizer(model)
        if self._norm_learning_rate is not None:
            groups = optimizer.param_groups
            trained: Any = self.model if model is None else model
            optimizer.param_groups = split_norms(groups, trained, self._norm_learning_rate)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The Trainer's, whose sampler has the epoch also in a resumed run of several processes."""
        loader = super().get_train_dataloader()
        pass_epochs_to_sampler(loader)
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """The Trainer's; validation rows are padded also where training rows are packed."""
        collator: Any = self.data_collator
        self.data_collator = replace(collator, padding_free=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        processes, steps = self.accelerator.num_processes, self.args.gradient_accumulation_steps
        rows_per_step = self.args.per_device_train_batch_size * steps * processes
        return LengthGroupedSampler(lengths, rows_per_step, self.args.seed)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """TRL's loss; in training with AdaLoRA plus its regularizer, which TRL leaves out."""
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tuner = adalora_of(self.model)
        if tuner is None or not model.training:
            return result
        # With a count of tokens the Trainer does not divide by the number of micro-steps.
        parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        penalty = orthogonality_loss(tuner) / parts
        return (result[0] + penalty, result[1]) if return_outputs else result + penalty

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of a validation batch; keeps what its rows add to that of the whole set."""
        inputs = {**self._prepare_inputs(inputs), "use_cache": False}
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = model(**inputs, fused_lm_head=True)
        per_token = (-scores.log_probs, scores.label_mask, scores.is_top1)
        rows = torch.stack([values.sum(1).float() for values in per_token], dim=1)  # (b, 3)
        # Without the rows that fill up the last batch where processes share them.
        self._validated.append(self.accelerator.gather_for_metrics(rows).cpu())
        return rows[:, 0].sum() / rows[:, 1].sum().clamp(min=1), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """The validation loss is Σ -log p over all response tokens by their number.

        The mean of the batches' losses, which the Trainer takes, depends on the batch size.
        """
        self._validated: list[torch.Tensor] = []
        output = super().evaluation_loop(*args, **kwargs)
        loss, tokens, correct = torch.cat(self._validated).double().sum(0).tolist()
        means = {"loss": loss / max(tokens, 1), "mean_token_accuracy": correct / max(tokens, 1)}
        prefix = kwargs.get("metric_key_prefix", "eval")
        of_tokens = {f"{prefix}_{name}": value for name, value in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **of_tokens})

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        with all_ranks(self.model):
            super()._save(output_dir, state_dict)
        folder = Path(output_dir or str(self.args.output_dir))
        save_estimates(self.model, folder)
        save_deltas(self.model, folder)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        if self._needs_unsharding(checkpoint):
            load_sharded_weights(Path(checkpoint), self.model)
        else:
            super()._load_from_checkpoint(checkpoint, model)
            load_deltas(self.model, Path(checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self._needs_unsharding(checkpoint):
            return super()._load_optimizer_and_scheduler(checkpoint)
        return load_sharded_optimizer(
            Path(checkpoint), self.model, self.optimizer, self.lr_scheduler
        )

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        if self._needs_unsharding(best):
            load_sharded_weights(Path(best), self.model)
            return
        with all_ranks(self.model):
            super()._load_best_model()
        load_deltas(self.model, Path(best))

    def _needs_unsharding(self, checkpoint: str) -> bool:
        """Whether an FSDP checkpoint is loaded into a model that is not sharded."""
        return is_sharded(Path(checkpoint)) and not self.is_fsdp_enabled

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(Path(str(self.args.output_dir)))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        for parameter in model.parameters():
            shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if parameter.requires_grad and not torch.isfinite(shard.detach()).all():
                self._raise_diverged("a trained weight")
        folder = self._folder
        self._saving = folder.saving
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = None
        self.accelerator.wait_for_everyone()
        # The best checkpoint by its final path, in the state of every process.
        step, best = self.state.global_step, self.state.best_global_step
        name = f"checkpoint-{best}" if best else None
        if name and (best == step or (folder.path / name).is_dir()):
            self.state.best_model_checkpoint = str(folder.path / name)
        if self.args.should_save:
            self.state.save_to_json(str(folder.saving / f"checkpoint-{step}" / STATE_FILE))
            folder.publish_checkpoint(step)
            folder.drop_old_checkpoints(self._keep_checkpoints, best=name)
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving is None else str(self._saving)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Replaced by `rosa.train.model_card`."""

    def load_finished(self, checkpoint: Path) -> bool:
        """Loads a checkpoint of the run's last step; False, without effect, for an earlier one.

        Resumed from there, the Trainer would train one step too many.
        """
        state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        if state.global_step < state.max_steps:
            return False
        self.state = state
        if self.args.load_best_model_at_end and state.best_model_checkpoint:
            # By its name: the run's folder may have been moved.
            best = checkpoint.with_name(Path(state.best_model_checkpoint).name)
            state.best_model_checkpoint = str(best)
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))
        self._meter.restore(state, self.args.device)
        return True

    def _raise_diverged(self, what: str) -> None:
        good = self._folder.checkpoints()
        kept = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
        raise DivergedError(
            f"{what} is not finite after step {self.state.global_step}: {kept}; train again in "
            "another output_dir with a lower learning_rate, or check the data and the base model's "
            "weights"
        )


def build_trainer(
    run: PreparedRun, meter: CostMeter, callbacks: list[TrainerCallback]
) -> GuardedTrainer:
    """The trainer with the run's callbacks; layer selection comes before those that report it."""
    recipe = run.recipe
    rows = sorted(run.validation_set.rows, key=lambda row: len(row["input_ids"]))
    selection = [] if recipe.dls is None else [DlsCallback(recipe.dls)]
    allocation = [AdaLoraAllocation()] if adalora_of(run.model) else []
    trainer = GuardedTrainer(
        model=run.model,
        args=trainer_arguments(recipe, run.total_steps, bool(rows)),
        train_dataset=Dataset.from_list(run.train_set.rows),
        eval_dataset=Dataset.from_list(rows) if rows else None,
        processing_class=run.tokenizer,
        callbacks=[*selection, *callbacks, *allocation],
        meter=meter,
        keep_checkpoints=recipe.keep_checkpoints,
        norm_learning_rate=recipe.norm_learning_rate,
    )
    for callback in selection:
        callback.trainer = trainer
    for replaced in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(replaced)
    return trainer


def trainer_arguments(recipe: Recipe, total_steps: int, has_validation: bool) -> SFTConfig:
    """The recipe as arguments of the Trainer."""
    save_steps = recipe.save_steps or max(1, total_steps // CHECKPOINTS_PER_RUN)
    share = split_step(recipe.batch_size, recipe.gradient_accumulation, world_size())
    device = pick_device()
    computing = pick_dtype(recipe.precision, device)
    arguments = SFTConfig(
        output_dir=recipe.output_dir,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=share.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        train_sampling_strategy=(
            "group_by_length" if recipe.group_by_length and not recipe.packing else "random"
        ),
        packing=recipe.packing,
        gradient_accumulation_steps=share.gradient_accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=warmup_steps(recipe, total_steps),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=computing == torch.bfloat16,
        fp16=computing == torch.float16,
        gradient_checkpointing=recipe.gradient_checkpointing,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=save_steps,
        save_strategy="steps",
        save_steps=save_steps,
        save_total_limit=None,  # the run's folder drops old ones once the new one is complete
        load_best_model_at_end=has_validation,  # the one with the lowest validation loss
        logging_steps=recipe.log_steps,
        report_to=recipe.trackers or "none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        seed=recipe.seed,
        data_seed=recipe.seed,
        max_length=None,  # rows are truncated in `tokenize_rows`, with a count
        dataset_kwargs={"skip_prepare_dataset": True},
        dataloader_pin_memory=device.type == "cuda",
    )
    if arguments.n_gpu > 1:  # not DataParallel over every GPU in sight, with more rows per step
        arguments._n_gpu = 1
    return arguments


def warmup_steps(recipe: Recipe, total_steps: int) -> int:
    """Steps of warm-up, which as a share leaves a step at the full rate.

    Of one step in all, warm-up would be the whole run, at a learning rate of 0.
    """
    if recipe.warmup >= 1:
        return int(recipe.warmup)
    return min(math.ceil(recipe.warmup * total_steps), total_steps - 1)
