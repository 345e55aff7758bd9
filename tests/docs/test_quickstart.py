"""guides/quickstart.md: its commands and its Python run, LoRA and RoSA in one model too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pages import ROOT, blocks, read_page, rosa_commands, section

PAGE = read_page("guides/quickstart.md")


def test_the_commands_are_those_of_the_readme() -> None:
    """Whose test runs them."""
    readme = rosa_commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert rosa_commands(PAGE) == readme[:4]


def test_the_first_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section(PAGE, "## In Python"), "python")
    exec(code, {"__name__": "page"})
    assert (tmp_path / "runs" / "rosa" / "adapter" / "adapter_config.json").is_file()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_lora_and_rosa_are_trained_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two blocks are one program."""
    monkeypatch.chdir(tmp_path)
    tokens = torch.randint(3, 300, (2, 12))
    names: dict[str, Any] = {"__name__": "page"}
    train_it, load_it = blocks(section(PAGE, "## Together with LoRA in one model"), "python")
    exec(train_it, names)
    trained = names["model"].eval()
    exec(load_it, names)
    loaded = names["model"].eval()
    assert loaded is not trained
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=tokens).logits, trained(input_ids=tokens).logits)
