"""guides/serving.md: its blocks run, in their order, as one program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pages import blocks, read_page


def test_the_blocks_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(read_page("guides/serving.md"), "python")
    assert len(found) == 5
    names: dict[str, Any] = {}
    program = "\n".join(found).replace('"aot_eager"', '"eager"')  # compiled in seconds
    exec(program, names)
    model, greedy = names["model"], names["greedy"]
    assert (greedy == names["static"]).all()
    exported = names["exported"](**names["prompts"]).logits
    assert torch.equal(exported, model(**names["prompts"]).logits)
    assert names["beams"].shape[0] == 4
    assert (names["assisted"] == model.generate(**names["one"], max_new_tokens=8)).all()
    logits, plain = names["logits"], model(**names["prompts"]).logits
    assert (logits - plain).abs().max() < 1e-4 < (logits - names["without"]).abs().max()
    assert names["loss"].isfinite()
