"""One run in every loop that people use: the same choices and the same weights, bit for bit.

Each loop trains the same model on the same batches in float32, two to a step, clips, and chooses
twice. What it is compared with is a plain loop that selects and clips by hand.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft.tuners.adalora import AdaLoraModel
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, DistributedSampler
from transformers import Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss
from trl import SFTConfig, SFTTrainer

from rosa import DlsCallback, DynamicLayerSelection
from tests.dls import test_adalora as adalora
from tests.dls.test_methods import METHODS, adapted
from tests.support.dls_models import (
    EVERY_THIRD,
    VOCABULARY,
    adamw,
    batch,
    same,
    snapshot,
    word_tokenizer,
)

DOCS = Path(__file__).parents[2] / "docs" / "guides" / "dls.md"
STEPS, PARTS, CLIP = 7, 2, 0.05  # chooses at steps 3 and 6
QUICK = ("RoSA",)
TRAINER = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": PARTS,
    "max_grad_norm": CLIP,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
Run = tuple[list[dict[str, Any]], list[torch.Tensor]]  # the history of choices, the final weights


def rows() -> list[dict[str, torch.Tensor]]:
    """What the run trains on; each of several processes takes every second batch."""
    parts = [batch(i) for i in range(STEPS * PARTS * processes())]
    return [{key: part[key][i] for key in part} for part in parts for i in range(4)]


def loader() -> DataLoader:
    return DataLoader(rows(), batch_size=4)


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def loss_of(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The models' own loss, in the form in which trainers take one."""
    return ForCausalLMLoss(outputs.logits, labels, VOCABULARY, num_items_in_batch)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    allocates = isinstance(getattr(model, "base_model", None), AdaLoraModel)
    return adalora.allocating_adamw(model) if allocates else adamw(model)


def plain(model: nn.Module, folder: Path, parts: int = PARTS) -> list[dict[str, Any]]:
    optimizer = optimizer_of(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, total_steps=STEPS)
    for micro, part in enumerate(loader(), start=1):
        loss = loss_of(model(input_ids=part["input_ids"]), part["labels"])
        (loss / parts).backward()
        if micro % parts == 0:
            dls.select()
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    dls.detach()
    return dls.history


def accelerate(model: nn.Module, folder: Path) -> list[dict[str, Any]]:
    accelerator = Accelerator(gradient_accumulation_steps=PARTS, cpu=True)
    model, optimizer, data = accelerator.prepare(model, optimizer_of(model), loader())
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, total_steps=STEPS)
    for part in data:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model(input_ids=part["input_ids"]), part["labels"]))
            if accelerator.sync_gradients:
                dls.select()
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    dls.detach()
    return dls.history


class Module(pl.LightningModule):
    """A model as Lightning wants it, with Lightning's own optimization."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, part: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        return loss_of(self.model(input_ids=part["input_ids"]), part["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.model)


def lightning_callback() -> Any:
    """The callback of docs/guides/dls.md."""
    section = DOCS.read_text(encoding="utf-8").split("## With Lightning")[1]
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    names: dict[str, Any] = {"DynamicLayerSelection": DynamicLayerSelection}
    exec(compile(source, str(DOCS), "exec"), names)
    return names["LayerSelection"](EVERY_THIRD)


def lightning_trainer(folder: Path, *callbacks: Any, **changes: Any) -> pl.Trainer:
    settings = {
        "max_steps": STEPS,
        "accumulate_grad_batches": PARTS,
        "gradient_clip_val": CLIP,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    return pl.Trainer(callbacks=list(callbacks), **{**settings, **changes})


def lightning(model: nn.Module, folder: Path) -> list[dict[str, Any]]:
    callback = lightning_callback()
    data, together = loader(), {}
    if processes() > 1:  # Lightning's own sampler would shuffle
        sampler = DistributedSampler(data.dataset, shuffle=False)
        data = DataLoader(data.dataset, batch_size=4, sampler=sampler)
        together = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    lightning_trainer(folder, callback, **together).fit(Module(model), data)
    return callback.dls.history


def transformers(model: nn.Module, folder: Path) -> list[dict[str, Any]]:
    callback = DlsCallback(EVERY_THIRD)
    Trainer(
        model,
        TrainingArguments(str(folder), **TRAINER),
        train_dataset=rows(),
        compute_loss_func=loss_of,
        optimizers=(optimizer_of(model), None),
        callbacks=[callback],
    ).train()
    return callback.dls.history


def sft(model: nn.Module, folder: Path) -> list[dict[str, Any]]:
    callback = DlsCallback(EVERY_THIRD)
    SFTTrainer(
        model,
        SFTConfig(str(folder), gradient_checkpointing=False, **TRAINER),
        train_dataset=Dataset.from_list([{k: v.tolist() for k, v in r.items()} for r in rows()]),
        processing_class=word_tokenizer(),
        compute_loss_func=loss_of,
        optimizers=(optimizer_of(model), None),
        callbacks=[callback],
    ).train()
    return callback.dls.history


LOOPS: dict[str, Callable[[nn.Module, Path], list[dict[str, Any]]]] = {
    "Accelerate": accelerate,
    "Lightning": lightning,
    "Trainer": transformers,
    "SFTTrainer": sft,
}


def made(method: str) -> nn.Module:
    return adalora.adapted() if method == "AdaLoRA" else adapted(method)


@functools.cache
def reference(method: str) -> Run:
    model = made(method)
    return plain(model, Path()), snapshot(model)


def cases() -> Iterator[Any]:
    for loop in LOOPS:
        for method in ("full fine-tuning", "AdaLoRA", *METHODS):
            cell = pytest.mark.dls_cell(method=method, loop=loop)
            marks = [cell] if method in QUICK else [cell, pytest.mark.slow]
            yield pytest.param(loop, method, marks=marks, id=f"{loop}-{method}")


@pytest.mark.parametrize(("loop", "method"), cases())
def test_a_loop_trains_as_the_plain_one_does(loop: str, method: str, tmp_path: Path) -> None:
    history, weights = reference(method)
    model = made(method)
    assert LOOPS[loop](model, tmp_path) == history
    assert [record["step"] for record in history] == [3, 6]
    assert same(snapshot(model), weights)


def test_lightning_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    """Saved at step 4, between the two choices; one batch again and again, so none is lost."""
    part = rows()[:4]
    data = DataLoader([row for _ in range(2 * STEPS) for row in part], batch_size=4)
    saver = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4)
    whole, callback = Module(adapted("RoSA")), lightning_callback()
    settings = {"accumulate_grad_batches": 1, "enable_checkpointing": True}
    lightning_trainer(tmp_path, callback, saver, **settings).fit(whole, data)

    resumed, again = Module(adapted("RoSA")), lightning_callback()
    trainer = lightning_trainer(tmp_path, again, **settings)
    trainer.fit(resumed, data, ckpt_path=str(tmp_path / "step=4.ckpt"))
    assert [record["step"] for record in again.dls.history] == [3, 6]
    assert again.dls.history == callback.dls.history
    assert same(snapshot(resumed), snapshot(whole))
