"""DLS in TRL's DPOTrainer, whose reference is the model with its adapter switched off."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.utils import clip_grad_norm_
from trl import DPOConfig, DPOTrainer

from rosa import DlsCallback, DynamicLayerSelection
from rosa.methods.registry import method_config
from tests.dls import test_adalora as adalora
from tests.dls.test_every_loop import CLIP, STEPS, TRAINER, optimizer_of
from tests.dls.test_methods import METHODS, adapted
from tests.support.dls_models import (
    EVERY_THIRD,
    VOCABULARY,
    decoder_layers,
    same,
    snapshot,
    tiny_llama,
    word_tokenizer,
)

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
# An adapter that the trainer attaches and one that is there; activations recomputed in both.
QUICK = (("RoSA", True, "non-reentrant"), ("LoRA", False, "reentrant"))
CHECKPOINTED = (
    ("RoSA", False, "non-reentrant"),
    ("LoRA", True, "non-reentrant"),
    ("LoRA", False, "non-reentrant"),
    ("LN tuning", False, "non-reentrant"),
)


def pairs() -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> str:
        ids = torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()
        return " ".join(f"w{i}" for i in ids)

    keys = ("prompt", "chosen", "rejected")
    return Dataset.from_list([{key: words(4) for key in keys} for _ in range(4 * 2 * STEPS)])


def config_of(method: str) -> Any:
    return adalora.configured() if method == "AdaLoRA" else method_config(*METHODS[method])


def dpo_trainer(method: str, folder: Path, fresh: bool, **changes: Any) -> DPOTrainer:
    """With an adapter that the trainer attaches, or with one that is there."""
    settings = {**TRAINER, "gradient_checkpointing": False, "max_length": 16, **changes}
    callbacks = settings.pop("callbacks", [])
    torch.manual_seed(0)
    trainer = DPOTrainer(
        tiny_llama(torch.float32) if fresh else adapted(method),
        ref_model=adapted(method) if method == "full fine-tuning" else None,
        args=DPOConfig(str(folder), **settings),
        train_dataset=pairs(),
        processing_class=word_tokenizer(),
        peft_config=config_of(method) if fresh else None,
        callbacks=callbacks,
    )
    trainer.optimizer = optimizer_of(trainer.model)
    return trainer


@functools.cache
def by_hand(method: str, fresh: bool) -> tuple[list[Any], list[torch.Tensor]]:
    """A plain loop over the trainer's batches with the trainer's loss."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = dpo_trainer(method, Path(folder), fresh)
    model, optimizer = trainer.model, trainer.optimizer
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, total_steps=STEPS)
    model.train()
    for micro, part in enumerate(trainer.get_train_dataloader(), start=1):
        (trainer.compute_loss(model, part) / 2).backward()
        if micro % 2 == 0:
            dls.select()
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
    dls.detach()
    return dls.history, snapshot(model)


def cases() -> Iterator[Any]:
    """The reference is the base model (`fresh`) or a frozen copy of the adapter."""
    slow = pytest.mark.slow
    for method in ("full fine-tuning", "AdaLoRA", *METHODS):
        marks = [pytest.mark.dls_cell(method=method, loop="DPOTrainer"), slow]
        fresh = method != "full fine-tuning"
        yield pytest.param(method, fresh, "plain", marks=marks, id=f"{method}-plain")
    for case in QUICK:
        yield pytest.param(*case)
    for case in CHECKPOINTED:
        yield pytest.param(*case, marks=slow)


@pytest.mark.parametrize(("method", "fresh", "checkpointing"), cases())
def test_the_trainer_trains_as_a_plain_loop_with_its_loss(
    method: str, fresh: bool, checkpointing: str, tmp_path: Path
) -> None:
    history, weights = by_hand(method, fresh)
    changes: dict[str, Any] = {"callbacks": [DlsCallback(EVERY_THIRD)]}
    if checkpointing != "plain":
        changes["gradient_checkpointing"] = True
        changes["gradient_checkpointing_kwargs"] = {"use_reentrant": checkpointing == "reentrant"}
    trainer = dpo_trainer(method, tmp_path / "trainer", fresh, **changes)
    trainer.train()
    assert [record["step"] for record in history] == [3, 6]
    assert changes["callbacks"][0].dls.history == history
    assert same(snapshot(trainer.model), weights)


def test_between_choices_frozen_layers_compute_nothing_though_peft_unfreezes_them(
    tmp_path: Path,
) -> None:
    callback = DlsCallback(EVERY_THIRD)
    trainer = dpo_trainer("LoRA", tmp_path, True, callbacks=[callback])
    layers = decoder_layers(trainer.model)
    computed: dict[int, set[int]] = {}
    for i, layer in enumerate(layers):
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, i=i: computed.setdefault(callback.dls.step + 1, set()).add(i)
                )
    trainer.train()
    chosen = {record["step"]: set(record["selected"]) for record in callback.dls.history}
    assert [computed[t] for t in (4, 5, 7)] == [chosen[3], chosen[3], chosen[6]]
