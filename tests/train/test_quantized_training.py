"""Trainers and recipes on bases of 4 and 8 bits (bitsandbytes, on the CPU)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from rosa import DlsConfig, RosaConfig
from rosa.errors import RosaError
from rosa.models.identity import identity
from rosa.models.loading import load, load_base_model
from rosa.roae.norms import NormWrapper
from rosa.train.recipe import Recipe, dump_recipe
from rosa.train.run import train
from tests.support.adapters import adapter_state, randomize
from tests.support.pages import blocks, read_page, section
from tests.support.quantized import (
    SMALL,
    TOKENS,
    adapted,
    each_of_bitsandbytes,
    logits,
    portable_kernels,
    quantized,
    stored,
    trainable,
    written_folder,
)
from tests.support.train_runs import logged, make_recipe

_kernels, folder = portable_kernels, written_folder


def copies(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """(trained copy, original) of each norm's weight."""
    for module in model.modules():
        if isinstance(module, NormWrapper):
            yield module.modules_to_save["default"].weight, module.original_module.weight


# Trainers: TRL turns every trainable parameter of such a base into bfloat16


def rows() -> Dataset:
    return Dataset.from_list(
        [{"input_ids": row.tolist(), "labels": row.tolist()} for row in TOKENS]
    )


def sft(folder: Path, bits: str, output: Path, model: nn.Module | None = None) -> SFTTrainer:
    """A trainer of TRL's as its documentation makes one."""
    texts = ["the answer is 1", "question 2 has answer1"] * 4
    return SFTTrainer(
        model=quantized(folder, bits, torch.bfloat16) if model is None else model,
        processing_class=AutoTokenizer.from_pretrained(folder),
        train_dataset=Dataset.from_list([{"text": text} for text in texts]),
        peft_config=RosaConfig(**SMALL) if model is None else None,
        args=SFTConfig(
            str(output),
            max_steps=6,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_steps=3,
            logging_steps=1,
            per_device_train_batch_size=2,
        ),
    )


@each_of_bitsandbytes
def test_trainer_leaves_the_adapter_in_float32(folder: Path, bits: str, tmp_path: Path) -> None:
    model = prepare_model_for_kbit_training(quantized(folder, bits, torch.bfloat16))
    model = get_peft_model(model, RosaConfig(**SMALL))
    args = TrainingArguments(
        str(tmp_path), max_steps=20, learning_rate=3e-2, use_cpu=True, report_to="none",
        logging_steps=1, lr_scheduler_type="constant", save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=rows())
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert found[-1] < 0.9 * found[0]
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}


@each_of_bitsandbytes
def test_trl_trains_the_adapter_in_float32(folder: Path, bits: str, tmp_path: Path) -> None:
    trainer = sft(folder, bits, tmp_path)
    model = trainer.model
    assert {p.dtype for p in trainable(model).values()} == {torch.bfloat16}  # what TRL does
    base = stored(model)
    trainer.train()
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    # Six steps of about 1e-3 on a weight near 1 are lost in bfloat16, whose numbers there are
    # 0.0078 apart.
    for copy, original in copies(model):
        moved = (copy - original).abs()
        assert moved.max() > 1e-3
        assert (moved > 0).float().mean() > 0.9
    assert all(torch.equal(stored(model)[name], tensor) for name, tensor in base.items())


def test_norms_that_trl_rounded_start_exactly_where_the_base_is(
    folder: Path, tmp_path: Path
) -> None:
    """Of a base whose norms are float32, as `prepare_model_for_kbit_training` makes them."""
    base = prepare_model_for_kbit_training(quantized(folder, "nf4"))
    expected = logits(base)
    trainer = sft(folder, "nf4", tmp_path, get_peft_model(base, RosaConfig(**SMALL)))
    model = trainer.model
    assert {p.dtype for p in trainable(model).values()} == {torch.bfloat16}
    model.train()
    assert all(torch.equal(copy, original) for copy, original in copies(model))
    assert torch.equal(logits(model), expected)


def test_a_run_of_trl_that_is_resumed_ends_with_the_same_adapter(
    folder: Path, tmp_path: Path
) -> None:
    whole = sft(folder, "nf4", tmp_path / "whole")
    whole.train()
    resumed = sft(folder, "nf4", tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, tensor in adapter_state(resumed.model).items():
        assert torch.equal(tensor, adapter_state(whole.model)[name]), name


def test_a_model_that_its_owner_makes_bfloat16_stays_so(folder: Path) -> None:
    model = adapted(folder, "int8", torch.bfloat16).to(torch.bfloat16).train()
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.bfloat16}
    base = quantized(folder, "nf4", torch.bfloat16)
    model = get_peft_model(base, RosaConfig(**SMALL), autocast_adapter_dtype=False).train()
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.bfloat16}


# Recipes


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    row = {"instruction": "question", "input": "", "output": "the correct answer is answer2"}
    (tmp_path / "rows.json").write_text(json.dumps([row] * 24))
    return make_recipe(
        tmp_path,
        tmp_path / "run",
        model=str(folder),
        adapter={"r": 4, "r_low": 1.0, "alpha": 1.0},
        dls=DlsConfig(interval=3, warmup=2),
        learning_rate=0.02,
        validation=4,
        max_steps=9,
        save_steps=3,
        gradient_accumulation=1,
        precision="auto",
    )


@pytest.mark.parametrize(
    ("bits", "precision"),
    [
        ("nf4", "bf16"),
        ("int8", "float32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("nf4", "float32"), ("int8", "bf16"))
        ),
    ],
)
def test_a_recipe_trains_and_evaluates_on_a_quantized_base(
    recipe: Recipe, bits: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the machine's own kernels: what is evaluated in between is trained on
    recipe = replace(recipe, quantization=bits, precision=precision)  # type: ignore[arg-type]
    result = train(recipe, log=str)
    found = logged(result.folder)
    assert found[-1] < found[0] - 0.1
    tensors = load_file(result.folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    loaded = load(str(result.folder), quantization=bits)
    assert stored(loaded.model)
    assert identity(loaded)["quantization"] == bits
    assert torch.isfinite(logits(loaded.model)).all()


def test_a_command_has_no_lines_of_bitsandbytes(recipe: Recipe, tmp_path: Path) -> None:
    """Which says at import what it lacks, and in every 8-bit layer what it computes in."""
    config = tmp_path / "recipe.yaml"
    config.write_text(dump_recipe(replace(recipe, quantization="int8", max_steps=3)))
    command = [sys.executable, "-m", "rosa", "train", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search("kernel|MatMul8bit", done.stderr + done.stdout)


def test_gradients_reach_the_first_layer_after_an_evaluation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    model = load_base_model(str(folder), quantization="nf4")
    model = get_peft_model(model, RosaConfig(**SMALL))
    randomize(model)
    logits(model)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in trainable(model).values())


def test_a_quantized_run_that_was_stopped_resumes_to_the_same_adapter(
    recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(recipe, quantization="nf4", keep_checkpoints=3)
    whole = load_file(train(recipe, log=str).folder / "adapter_model.safetensors")
    for step in (6, 9):  # as if it had been stopped after step 3
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "run" / file).unlink()
    said: list[str] = []
    train(recipe, resume=True, log=said.append)
    assert "resuming after step 3" in said
    again = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_what_cannot_be_raises_one_sentence(
    recipe: Recipe, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RosaError, match="unknown quantization 'int4'; choose from nf4, int8"):
        load_base_model(str(folder), quantization="int4")
    monkeypatch.setattr("rosa.models.quantization.find_spec", lambda name: None)
    with pytest.raises(RosaError, match=r"bitsandbytes, which is not installed; `pip install"):
        train(replace(recipe, quantization="nf4"), log=str)
    assert not Path(recipe.output_dir).exists()


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """guides/training.md, its blocks one after another; on the machine's kernels."""
    monkeypatch.undo()
    page = section(read_page("guides/training.md"), "### Quantized base models (QLoRA-style)")
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(block, names)
    model = names["model"]
    assert stored(model)
    full = get_peft_model(load_base_model(names["path"]), RosaConfig())
    assert model.get_nb_trainable_parameters() == full.get_nb_trainable_parameters()
    tokens = torch.randint(3, 700, (2, 12))
    with torch.no_grad():
        model.eval()(input_ids=tokens)
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [p.grad for n, p in trainable(model).items() if "norm" in n]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
