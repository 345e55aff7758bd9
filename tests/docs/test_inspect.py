"""docs/inspect.md: its commands run and its Python runs, on fewer steps and texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rosa.cli.inspect import build_parser
from rosa.cli.main import main
from tests.support.pages import ROOT, blocks, rosa_commands

PAGE = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
QUICK = {"train": ["--max_steps", "4", "--limit", "40"], "inspect": ["--limit", "2"]}


def test_the_commands_run(in_a_copy: Path) -> None:
    commands = rosa_commands(PAGE)
    assert [command[0] for command in commands] == ["inspect", "train", "inspect"]
    for command in commands:
        assert main([*command, *QUICK[command[0]]]) == 0, command
    files = re.findall(r"^\| `(\w+\.\w+)` \|", PAGE, flags=re.MULTILINE)
    made = in_a_copy / "runs" / "inspected" / "inspect"
    assert sorted(files) == sorted(file.name for file in made.iterdir())


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(PAGE, "python")
    exec(code, {})
    assert (tmp_path / "figure1.png").is_file()


def test_every_option_is_named() -> None:
    named = set(re.findall(r"`--(\w+)`", PAGE))
    assert named == set(build_parser().option_names) - {"help", "trust_remote_code"}
