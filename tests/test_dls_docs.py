"""docs/dls.md: its examples run, one after the other, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig

from tests.dls_models import batch, tiny_llama, word_tokenizer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "dls.md"


@pytest.mark.filterwarnings("ignore:DLS never chooses")
def test_the_examples_run(tmp_path: Path) -> None:
    model = tiny_llama(torch.float32)
    rows = [{key: row[0].tolist() for key, row in batch(seed, 1).items()} for seed in range(4)]
    settings = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters()),
        "loader": [batch(seed) for seed in range(2)],
        "data": Dataset.from_list(rows),
        "tokenizer": word_tokenizer(),
        "args": TrainingArguments(str(tmp_path / "trainer"), **settings),
        "sft_args": SFTConfig(str(tmp_path / "sft"), bf16=False, **settings),
    }
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(examples) == 6
    plain, clipped, accelerate, trainer, sft, saving = examples
    attach, detach = plain.split("for batch")[0], "dls.detach()\n"
    for source in (
        plain,
        attach + clipped + detach,
        accelerate + detach,
        trainer,
        attach + saving + detach,
        sft,
    ):
        exec(compile(source, str(PAGE), "exec"), names)
    assert (tmp_path / "sft" / "dls_history.jsonl").exists()
