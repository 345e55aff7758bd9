"""docs/dls.md: its examples run, one after the other, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from tests.dls.test_every_loop import Module
from tests.support.dls_models import batch, tiny_llama, word_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "dls.md"


@pytest.mark.filterwarnings("ignore:DLS never chooses")
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
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(examples) == 9
    plain, clipped, accelerate, callback, lightning, trainer, sft, dpo, saving = examples
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
        exec(compile(source, str(PAGE), "exec"), names)
    for trainer in ("sft", "dpo"):
        assert (tmp_path / trainer / "dls_history.jsonl").exists()
