"""guides/dls.md: its examples and commands run; reference/dls_matrix.md is what the tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from rosa.train.plots import read_history
from tests.conftest import COLLECTED
from tests.dls.test_every_loop import Module
from tests.docs.conftest import run_quickly
from tests.support import dls_table
from tests.support.dls_models import adamw, batch, tiny_llama, word_tokenizer
from tests.support.dls_table import LOOPS
from tests.support.dls_table import PAGE as MATRIX
from tests.support.pages import ROOT, blocks, read_page, rosa_commands, section

PAGE = read_page("guides/dls.md")


@pytest.mark.filterwarnings("ignore:DLS never selects")
def test_the_examples_run(tmp_path: Path) -> None:
    model = tiny_llama(torch.float32)
    rows = [{key: row[0].tolist() for key, row in batch(seed, 1).items()} for seed in range(4)]
    settings = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    quiet = {"enable_progress_bar": False, "default_root_dir": str(tmp_path / "lightning")}
    loader = DataLoader([{k: v[0] for k, v in batch(seed).items()} for seed in range(2)])
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": loader,
        "plain_loader": loader,
        "data": Dataset.from_list(rows),
        "tokenizer": word_tokenizer(),
        "args": TrainingArguments(str(tmp_path / "trainer"), **settings),
        "sft_args": SFTConfig(str(tmp_path / "sft"), bf16=False, **settings),
        "dpo_args": DPOConfig(str(tmp_path / "dpo"), bf16=False, **settings),
        "pairs": Dataset.from_dict({"prompt": ["w3"], "chosen": ["w4"], "rejected": ["w5"]}),
        "tiny_llama": lambda: tiny_llama(torch.float32),
        "module": Module(model),
        "lightning_args": {"max_steps": 2, "accelerator": "cpu", "logger": False, **quiet},
    }
    examples = blocks(PAGE, "python")
    assert len(examples) == 11
    plain, clipped, accelerate, trainer, sft, dpo, callback, lightning, saving, *_ = examples
    fresh_model = "model = tiny_llama()\n"  # the one before has an adapter by then
    attach, detach = plain.split("for batch")[0], "dls.detach()\n"
    for source in (
        plain,
        attach + clipped + detach,
        accelerate + detach,
        "loader = plain_loader\n" + callback + lightning,  # not what Accelerate made of it
        trainer,
        attach + saving + detach,
        sft,
        fresh_model + dpo,
    ):
        exec(compile(source, "guides/dls.md", "exec"), names)
    for trainer in ("sft", "dpo"):
        assert (tmp_path / trainer / "dls_history.jsonl").exists()


def test_the_distributed_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: the loop is the same."""
    monkeypatch.chdir(tmp_path)
    model = tiny_llama(torch.float32)
    rows = [{key: value[0] for key, value in batch(seed).items()} for seed in range(2)]
    names = {"model": model, "optimizer": adamw(model), "loader": DataLoader(rows)}
    try:
        for source in blocks(section(PAGE, "## Several processes"), "python"):
            exec(compile(source, "guides/dls.md", "exec"), names)
        assert names["dls"].step == 2
    finally:
        names["dls"].detach()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def test_the_commands_run(in_a_copy: Path) -> None:
    assert run_quickly(rosa_commands(PAGE)) == ["train", "plot", "train", "train"]
    modes = {
        run.name: [record["mode"] for record in read_history(run)]
        for run in (in_a_copy / "runs").iterdir()
    }
    assert modes["tiny-random"] == ["random"]
    assert modes["tiny-upper"] == ["static"]
    assert read_history("runs/tiny-upper")[0]["selected"] == [3, 4, 5]
    assert (in_a_copy / "runs" / "tiny" / "chosen.svg").is_file()
    assert (in_a_copy / "runs" / "tiny" / "layers.png").is_file()


def test_the_matrix_is_written_from_the_tests(pytestconfig: pytest.Config) -> None:
    """Else run python -m tests.support.dls_table. Where this session has not collected its tests,
    they are collected in an interpreter of its own."""
    items = [item for item in pytestconfig.stash[COLLECTED] if item.path in dls_table.sources()]
    if {item.path for item in items} == dls_table.sources():
        written = dls_table.page(items)
    else:
        code = "from tests.support.dls_table import page; print(page(), end='')"
        command = [sys.executable, "-c", code]
        written = subprocess.run(command, stdout=-1, text=True, cwd=ROOT, check=True).stdout
    assert written == MATRIX.read_text(encoding="utf-8")


def test_the_matrix_has_tested_cells_and_errors() -> None:
    rows = [line for line in MATRIX.read_text(encoding="utf-8").splitlines() if line[0:2] == "| "]
    by_method = {cells[1].strip(): cells[2:-1] for cells in (row.split("|") for row in rows)}
    assert [loop.strip() for loop in by_method["method"]] == list(LOOPS)
    assert [cell.split()[0] for cell in by_method["RoSA"]] == ["1"] * len(LOOPS)
    assert {cell.strip() for cell in by_method["prompt tuning"]} == {"error"}
