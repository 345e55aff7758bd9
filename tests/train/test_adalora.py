"""AdaLoRA in a run: its regularizer is in the loss, its ranks move, and it can be resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from transformers import set_seed

from rosa import DlsConfig
from rosa.methods.registry import method_config
from rosa.models.loading import load
from rosa.train.adalora import orthogonality_loss
from rosa.train.recipe import Recipe
from rosa.train.run import TrainResult, build_model, train
from tests.support.tiny_folder import tiny_llama
from tests.support.train_runs import (
    interrupted_at,
    logged,
    make_recipe,
    same_adapter,
    write_inputs,
)

STEPS = 16
KEYS: dict[str, Any] = {
    "method": "adalora",
    "adapter": {"init_r": 6, "target_r": 3, "target_modules": "all-linear"},
    "learning_rate": 0.02,
    "validation": 8,
    "max_steps": STEPS,
    "save_steps": 2,
    "keep_checkpoints": STEPS,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and rows."""
    rows = [{"prompt": f"question {i}", "completion": f"answer{i % 4 + 1}"} for i in range(40)]
    return write_inputs(tmp_path_factory.mktemp("adalora"), rows)


@pytest.fixture
def recipe(place: Path, tmp_path: Path) -> Recipe:
    return make_recipe(place, tmp_path / "run", **KEYS)


@pytest.fixture(scope="module")
def finished(place: Path) -> TrainResult:
    return train(make_recipe(place, place / "finished", **KEYS), log=str)


def adapted(**keys: Any) -> Any:
    """AdaLoRA on a tiny Llama, with every weight somewhere known."""
    model = get_peft_model(
        tiny_llama(),
        method_config("adalora", {"init_r": 4, "target_r": 2, **keys}, total_steps=10),
    )
    torch.manual_seed(1)
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.data = torch.randn_like(p) * 0.3
    return model


def test_the_regularizer_is_what_peft_adds_to_the_models_own_loss() -> None:
    model = adapted(orth_reg_weight=0.25).eval()
    ids = torch.arange(12).reshape(2, 6)
    with_it = model(input_ids=ids, labels=ids).loss
    without = model.base_model.model(input_ids=ids, labels=ids).loss
    penalty = orthogonality_loss(model.base_model)
    assert penalty.item() > 0.1
    assert (with_it - without).item() == pytest.approx(penalty.item(), rel=1e-5)


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_trained_loss_differs_by_the_regularizer_and_the_validation_loss_does_not(
    recipe: Recipe, tmp_path: Path, accumulation: int
) -> None:
    """The first step, whose weights are the same with any weight of the regularizer."""

    def losses(weight: float) -> tuple[float, float]:
        keys = {**recipe.adapter, "orth_reg_weight": weight}
        run = replace(
            recipe,
            adapter=keys,
            output_dir=str(tmp_path / str(weight)),
            gradient_accumulation=accumulation,
            learning_rate=1e-30,
            max_steps=1,
            save_steps=1,
        )
        folder = train(run, log=str).folder
        return logged(folder)[-1], logged(folder, "eval_loss")[-1]

    (off, eval_off), (on, eval_on) = losses(0.0), losses(0.5)
    set_seed(recipe.seed)
    start = build_model(recipe, 1)
    assert on - off == pytest.approx(orthogonality_loss(start.base_model).item(), rel=1e-5)
    assert eval_on == eval_off


def test_ranks_move_from_the_warmup_to_the_target(finished: TrainResult) -> None:
    folder = finished.folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["tinit"], config["tfinal"], config["total_step"]) == (2, 8, STEPS)
    kept = {}
    for step in (2, 4, 6, 8, 12, 16):
        weights = load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors")
        values = [value for key, value in weights.items() if "lora_E" in key]
        assert all(len(value) == 6 for value in values)  # pruned ranks are zeros, not absent
        kept[step] = sum(int((value != 0).sum()) for value in values)
    modules = 2 * 7
    assert kept[2] == 6 * modules
    assert kept[2] > kept[4] > kept[6] > kept[8]
    assert kept[8] == kept[12] == kept[16] == 3 * modules
    ranks = {
        key: int((value != 0).sum())
        for key, value in load_file(folder / "checkpoint-16/adapter_model.safetensors").items()
        if "lora_E" in key
    }
    assert len(set(ranks.values())) > 1  # reallocated, not cut evenly


def test_the_final_adapter_is_pruned_and_is_the_best_checkpoint(finished: TrainResult) -> None:
    result = finished
    best = json.loads((result.folder / f"checkpoint-{STEPS}/trainer_state.json").read_text())
    ids = torch.arange(4, 16).reshape(2, 6)
    final = load(str(result.folder)).model(ids).logits
    whole = load(str(best["best_model_checkpoint"])).model(ids).logits
    assert torch.allclose(final, whole, atol=1e-5)
    size = (result.folder / "adapter_model.safetensors").stat().st_size
    assert size < (result.folder / "checkpoint-2/adapter_model.safetensors").stat().st_size
    r, hidden, ffn, kv = 6, 32, 48, 16
    widths = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + ffn)
    assert result.trainable == 2 * (r * widths + 7 * r)  # the initial rank, which was trained


@pytest.mark.parametrize("steps", [2, 3])
def test_the_shortest_runs_cut_their_ranks_too(recipe: Recipe, steps: int) -> None:
    folder = train(replace(recipe, max_steps=steps), log=str).folder
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == 3 * 2 * 7


@pytest.mark.parametrize(
    ("stop", "dls"),
    [
        # Before the first cut, between cuts, after the last.
        *(pytest.param(stop, None, marks=pytest.mark.slow) for stop in (1, 5, 11)),
        pytest.param(
            5,
            DlsConfig(interval=3, warmup=2),
            marks=pytest.mark.dls_cell(method="AdaLoRA", loop="SFTTrainer"),
        ),
    ],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, stop: int, dls: Any
) -> None:
    recipe = replace(recipe, dls=dls)
    whole = train(recipe, log=str).folder
    parts = replace(recipe, output_dir=str(tmp_path / "parts"))
    with interrupted_at(stop):
        assert not train(parts, log=str).finished
    folder = train(parts, resume=True, log=str).folder
    assert same_adapter(whole / f"checkpoint-{STEPS}", folder / f"checkpoint-{STEPS}")
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    assert sum(map(sum, pattern.values())) == 3 * 2 * 7  # cut to the target, also with DLS
