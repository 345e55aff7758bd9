"""`packing`: several rows in one sequence train as the same rows alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rosa.dls import DlsConfig
from rosa.errors import RosaError
from rosa.models.loading import load_tokenizer
from rosa.train.costs import CostMeter
from rosa.train.packing import check_method_packs, check_rows_stay_apart, pack_rows
from rosa.train.recipe import Recipe
from rosa.train.run import build_model, load_tokenized_rows, train
from rosa.train.trainer import PreparedRun, build_trainer
from tests.support.adapters import randomize
from tests.support.architectures import ARCHITECTURES, BY_NAME, Architecture
from tests.support.tiny_models import random_tokens
from tests.support.train_runs import interrupted_at, logged, make_recipe, same_adapter, write_inputs

ROWS = [
    {"prompt": "how many " * (1 + i % 5), "completion": "the answer1 " * (1 + 7 * (i % 3 == 0))}
    for i in range(12)
]
DAILY = ("llama", "gemma3_text", "phi3", "mixtral", "falcon", "lfm2")
# With attention of another kind, or states that pass on where no kernel of theirs is installed.
MIXING = {
    *("gpt_oss", "minimax", "afmoe", "falcon", "falcon-multi-head", "falcon-grouped", "lfm2"),
    *("lfm2_moe", "lfm3", "recurrent_gemma", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    *("olmo_hybrid", "granitemoehybrid", "bailing_hybrid", "bamba", "falcon_h1"),
}
# Their angles depend on the longest row of a batch, padded or packed.
OF_THE_BATCH = {"llama-dynamic", "llama-longrope"}
EACH_ARCHITECTURE = [
    pytest.param(a, id=a.name, marks=[] if a.name in DAILY else pytest.mark.slow)
    for a in ARCHITECTURES
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("packing"), ROWS, layers=3)


class KeepGradients(TrainerCallback):
    """Keeps the gradients of each optimizer step, before clipping has changed their weights."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def one_step(recipe: Recipe) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and trained tokens of a run's only step, with a random adapter."""
    tokenizer = load_tokenizer(recipe.model)
    rows, validation = load_tokenized_rows(recipe, tokenizer)
    if recipe.packing:
        rows.rows = pack_rows(rows.rows, recipe.max_length, recipe.seed)
        assert 1 < len(rows.rows) < len(ROWS)
    model = build_model(recipe, 1)
    randomize(model)
    kept, meter = KeepGradients(), CostMeter()
    trainer = build_trainer(
        PreparedRun(recipe, model, tokenizer, rows, validation, 1), meter, [kept]
    )
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    [gradients] = kept.steps
    return entry["loss"], gradients, int(entry["num_tokens"])


@pytest.mark.parametrize("train_on_prompt", [False, True])
@pytest.mark.parametrize("method", ["rosa", "lora"])
def test_loss_and_gradients_are_those_of_the_rows_alone(
    method: str, train_on_prompt: bool, place: Path, tmp_path: Path
) -> None:
    """All rows in one step: packed, and each alone in a micro-batch of its own."""
    alone = make_recipe(
        place, tmp_path / "run", method=method, adapter={"r": 4}, dls=None, validation=0,
        max_steps=1, max_grad_norm=0.0, max_length=48, batch_size=1, gradient_accumulation=12,
        train_on_prompt=train_on_prompt,
    )  # fmt: skip
    packed = replace(alone, packing=True, batch_size=2, gradient_accumulation=8)
    loss, gradients, tokens = one_step(alone)
    packed_loss, packed_gradients, packed_tokens = one_step(packed)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert packed_tokens == tokens
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        torch.testing.assert_close(
            packed_gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


def test_packed_rows_are_all_the_rows(place: Path, tmp_path: Path) -> None:
    recipe = make_recipe(place, tmp_path, max_length=48, validation=0)
    rows, _ = load_tokenized_rows(recipe, load_tokenizer(recipe.model))
    packed = pack_rows(rows.rows, 48, seed=1)
    assert max(len(sequence["input_ids"]) for sequence in packed) <= 48
    found = []
    for sequence in packed:
        start = 0
        for length in sequence["seq_lengths"]:
            span = slice(start, start := start + length)
            found.append({key: sequence[key][span] for key in ("input_ids", "labels")})
        assert start == len(sequence["input_ids"])
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, rows.rows))
    assert pack_rows(rows.rows, 48, seed=1) == packed


def test_a_packed_run_resumes_with_layer_selection(place: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "adapter": {"r": 4}, "dls": DlsConfig(interval=2, warmup=1), "packing": True, "epochs": 5,
        "validation": 3, "max_length": 32, "batch_size": 1, "save_steps": 2, "learning_rate": 0.01,
    }  # fmt: skip
    log: list[str] = []
    whole = train(make_recipe(place, tmp_path / "whole", **keys), log=log.append)
    [line] = [line for line in log if line.startswith("packed into")]
    sequences = int(line.split()[2])
    assert whole.steps == whole.total_steps == 5 * -(-sequences // 2)  # two micro-steps each
    recipe = make_recipe(place, tmp_path / "stopped", **keys)
    with interrupted_at(3):
        assert not train(recipe, log=str).finished
    train(recipe, resume=True, log=str)
    assert same_adapter(whole.folder, tmp_path / "stopped")
    assert logged(whole.folder) == logged(tmp_path / "stopped")


def test_validation_rows_are_not_packed(place: Path, tmp_path: Path) -> None:
    losses = []
    for packing in (False, True):
        recipe = make_recipe(
            place, tmp_path / f"{packing}", dls=None, adapter={"r": 4}, validation=5, max_steps=1,
            save_steps=1, learning_rate=1e-12, packing=packing,
        )  # fmt: skip
        train(recipe, log=str)
        losses += logged(tmp_path / f"{packing}", "eval_loss")
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-6)


def mixing_attention(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> Any:
    """A kernel that attends to all earlier positions, whatever the mask says."""
    return sdpa_attention_forward(module, q, k, v, None, is_causal=True, **kwargs)


def test_a_kernel_that_mixes_rows_is_an_error_before_the_run_begins(
    place: Path, tmp_path: Path
) -> None:
    AttentionInterface.register("mixing", mixing_attention)
    AttentionMaskInterface.register("mixing", lambda *args, **kwargs: None)
    recipe = make_recipe(place, tmp_path / "run", packing=True, attn_implementation="mixing")
    with pytest.raises(RosaError, match=r"with mixing attention does not keep the rows .* apart"):
        train(recipe, log=str)
    assert not (tmp_path / "run").exists()


def test_prompt_learning_is_an_error_before_the_model_is_loaded(tmp_path: Path) -> None:
    recipe = Recipe(
        "absent/model", "tiny-sums", str(tmp_path), method="prompt_tuning", packing=True
    )
    with pytest.raises(RosaError, match="packing: prompt_tuning puts learned tokens"):
        check_method_packs(recipe)


def test_recurrent_layers_are_an_error_before_the_model_is_loaded(tmp_path: Path) -> None:
    BY_NAME["falcon_h1"].build().config.save_pretrained(tmp_path / "model")
    recipe = Recipe(str(tmp_path / "model"), "tiny-sums", str(tmp_path), packing=True)
    with pytest.raises(RosaError, match=r"\(falcon_h1\) has layers with a recurrent state"):
        check_method_packs(recipe)


def test_an_unknown_kernel_is_an_error(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=r"cannot load the model .*flash_attention_9"):
        train(
            make_recipe(place, tmp_path / "run", attn_implementation="flash_attention_9"), log=str
        )


@pytest.mark.parametrize("architecture", EACH_ARCHITECTURE)
def test_what_is_accepted_keeps_rows_apart(architecture: Architecture) -> None:
    """Of every architecture: an error, or gradients of packed rows as of the rows alone."""
    model = architecture.build()
    if architecture.name in MIXING:
        with pytest.raises(RosaError, match=r"^packing: "):
            check_rows_stay_apart(model, architecture.name)
        return
    check_rows_stay_apart(model, architecture.name)
    if architecture.name not in OF_THE_BATCH:
        assert_as_alone(model)


def assert_as_alone(model: Any) -> None:
    rows = [random_tokens(1, length, seed=length)[0] for length in (5, 9, 3)]
    batch = DataCollatorForLanguageModeling(0, padding_free=True)(
        [{"input_ids": r.tolist()} for r in rows]
    )
    del batch["labels"]
    found = []
    for inputs in ([{"input_ids": row[None]} for row in rows], [batch]):
        model.zero_grad()
        logits = torch.cat([model(**each, use_cache=False).logits for each in inputs], dim=1)
        logits.square().mean().backward()
        named = model.named_parameters()
        found.append(
            {n: p.grad.clone() for n, p in named if p.grad is not None} | {"": logits.detach()}
        )
    assert found[0].keys() == found[1].keys()
    for name, alone in found[0].items():
        torch.testing.assert_close(
            found[1][name],
            alone,
            rtol=1e-3,
            atol=1e-5 * max(1.0, alone.abs().max().item()),
            msg=name,
        )
