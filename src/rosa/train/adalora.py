"""What AdaLoRA needs from a training loop.

PEFT adds AdaLoRA's regularizer where the model computes the loss, which TRL's trainer bypasses. It
reallocates ranks only when the loop calls it. It prunes the ranks that it saves, and keeps its
importance estimates in memory alone, so that training could not resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

STATE_FILE = "adalora_state.safetensors"
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")  # of a weight's sensitivity and uncertainty


def adalora_of(model: Any) -> AdaLoraModel | None:
    """The AdaLoRA tuner of a PEFT model; None for another method."""
    tuner = getattr(model, "base_model", None)
    return tuner if isinstance(tuner, AdaLoraModel) else None


def orthogonality_loss(tuner: AdaLoraModel) -> Tensor:
    """orth_reg_weight · mean ‖P·Pᵀ - I‖_F over all A (rows) and B (columns), as PEFT weighs it."""
    name = tuner.trainable_adapter_name
    distances = []
    for key, p in tuner.model.named_parameters():
        if ("lora_A" in key or "lora_B" in key) and name in key:
            gram = p @ p.T if "lora_A" in key else p.T @ p
            distances.append(torch.norm(gram - torch.eye(len(gram)).to(gram)))
    return _config(tuner).orth_reg_weight * torch.stack(distances).mean()


@contextmanager
def all_ranks(model: Any) -> Iterator[None]:
    """Inside, pruned ranks are saved and loaded too, as zeros; then the pattern is set again."""
    tuner = adalora_of(model)
    if tuner is None:
        yield
        return
    _config(tuner).rank_pattern = None
    try:
        yield
    finally:
        _set_pattern(tuner)


def _set_pattern(tuner: AdaLoraModel) -> None:
    """Tells PEFT which ranks each module still has: those whose singular value is not exactly 0."""
    mark = f"lora_E.{tuner.trainable_adapter_name}"
    values = {key: p for key, p in tuner.model.named_parameters() if mark in key}
    pattern = {key: (p != 0).view(-1).tolist() for key, p in values.items()}
    _config(tuner).rank_pattern = None if all(map(all, pattern.values())) else pattern


class AdaLoraAllocation(TrainerCallback):
    """Calls AdaLoRA's rank reallocation, and restores its estimates in a resumed run."""

    def on_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        # The ranks depend on this step's gradients, which still exist here.
        tuner, step = model.base_model, state.global_step + 1
        config = _config(tuner)
        if step == 1 == config.total_step - config.tfinal:
            # So short a run prunes in its first step, in which PEFT makes no estimate.
            tuner.rankallocator.update_ipt(tuner.model)
        tuner.update_and_allocate(step)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if state.global_step:
            load_estimates(model, Path(args.output_dir) / f"checkpoint-{state.global_step}")


def save_estimates(model: Any, folder: Path) -> None:
    """Writes AdaLoRA's importance estimates; does nothing for another method."""
    tuner = adalora_of(model)
    if tuner is None:
        return
    averages = {name: getattr(tuner.rankallocator, name) for name in _AVERAGES}
    tensors = {f"{name}/{key}": p for name, of in averages.items() for key, p in of.items()}
    save_file(tensors, folder / STATE_FILE)


def load_estimates(model: Any, folder: Path) -> None:
    """Restores what `save_estimates` wrote; the model has the weights of that moment."""
    tuner = model.base_model
    _set_pattern(tuner)
    device = str(next(tuner.parameters()).device)
    for name, value in load_file(folder / STATE_FILE, device=device).items():
        average, key = name.split("/", 1)
        getattr(tuner.rankallocator, average)[key] = value
        tuner.rankallocator.ipt[key] = torch.zeros_like(value)  # is of the last step alone


def _config(tuner: AdaLoraModel) -> Any:
    return tuner.peft_config[tuner.trainable_adapter_name]
