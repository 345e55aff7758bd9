"""A learning rate of the norms alone, in any loop and in `rosa train`; relative norms in a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

import rosa
from rosa import DlsConfig, RosaConfig
from rosa.errors import RosaError
from rosa.train.recipe import Recipe
from rosa.train.run import train
from tests.support.adapters import SMALL, adapted
from tests.support.tiny_models import tiny_model
from tests.support.train_runs import (
    adapter,
    interrupted_at,
    make_recipe,
    same_adapter,
    write_inputs,
)

ROWS = [{"instruction": f"question {i % 5}", "output": f"answer {i % 5}"} for i in range(32)]


def of_norms(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    return {p for name, p in model.named_parameters() if p.requires_grad and "norm" in name}


def test_groups_have_all_trainable_parameters_once_and_the_trainer_s_decay() -> None:
    model = adapted("gemma3")
    groups = rosa.parameter_groups(model, lr=1e-3, norm_lr=5e-3, weight_decay=0.1)
    held = [p for group in groups for p in group["params"]]
    trainable = {p for p in model.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert set(held) == trainable
    trainer = Trainer(model, TrainingArguments("unused", weight_decay=0.1, report_to="none"))
    theirs = trainer.create_optimizer().param_groups
    decay = {p: group["weight_decay"] for group in theirs for p in group["params"]}
    norms = of_norms(model)
    for group in groups:
        for p in group["params"]:
            assert group["lr"] == (5e-3 if p in norms else 1e-3)
            assert group["weight_decay"] == decay[p]
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.AdamW(groups), lambda step: 0.5)
    assert scheduler.get_last_lr() == [5e-4, 2.5e-3]


def test_mistakes_raise() -> None:
    model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(**SMALL, train_norms=False))
    with pytest.raises(RosaError, match="no norm is trained"):
        rosa.parameter_groups(model, 1e-3, 5e-3)
    with pytest.raises(RosaError, match="norm_learning_rate must be a number above 0, not 0"):
        rosa.parameter_groups(model, 1e-3, 0)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return make_recipe(
        write_inputs(tmp_path / "inputs", ROWS),
        tmp_path / "run",
        adapter={"r": 4, "norm_parametrization": "relative"},
        norm_learning_rate=5e-3,
        dls=DlsConfig(interval=2, warmup=0, score="relative"),
        max_steps=6,
        save_steps=2,
    )


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path
) -> None:
    """With relative norms, whose δ an adapter's file rounds, at their own rate, under DLS."""
    train(recipe, log=str)
    stopped = replace(recipe, output_dir=str(tmp_path / "stopped"))
    with interrupted_at(4):
        assert not train(stopped, log=str).finished
    assert train(stopped, resume=True, log=str).finished
    assert same_adapter(Path(recipe.output_dir), tmp_path / "stopped")


def test_the_rate_reaches_the_norms_alone(recipe: Recipe, tmp_path: Path) -> None:
    """After one step AdamW has moved each weight by its rate, where it has a gradient."""
    folders: dict[float, Any] = {}
    for rate in (1e-3, 4e-3):
        run = replace(
            recipe,
            adapter={"r": 4},
            norm_learning_rate=rate,
            output_dir=str(tmp_path / str(rate)),
            max_steps=1,
            warmup=0.0,
            dls=None,
        )
        folders[rate] = adapter(train(run, log=str).folder)
    slow, fast = folders.values()
    for key in slow:
        assert torch.equal(slow[key], fast[key]) == ("norm" not in key), key
