"""guides/training.md: its recipe and its commands run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.conftest import run_quickly
from tests.support.pages import blocks, read_page, rosa_commands, section

PAGE = read_page("guides/training.md")


def test_the_training_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(blocks(PAGE, "yaml")[0])
    commands = [command for command in rosa_commands(PAGE) if command[0] == "train"]
    assert len(run_quickly(commands)) == 4
    assert {folder.name for folder in Path("runs").iterdir()} == {"example", "dora", "relative"}
    files = re.findall(r"`([\w.]+\.\w+)`", section(PAGE, "## The run's folder"))
    assert {"costs.json", "metrics.jsonl", "README.md"} <= set(files)
    for name in files:
        assert (tmp_path / "runs" / "example" / name).is_file(), name


def test_the_commands_that_estimate_memory_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [command for command in rosa_commands(PAGE) if command[0] == "params"]
    assert len(run_quickly(commands)) == 2
    assert "By formula" in capsys.readouterr().out
