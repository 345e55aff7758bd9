"""Fixtures of the tests that run what the docs say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rosa.cli.main import main
from tests.support.pages import ROOT

# Appended to a page's own command, so that it takes seconds: what a test checks of the docs is that
# their commands work, not how well a model learns.
QUICK = {
    "train": [
        *("--max_steps", "11", "--log_steps", "5", "--save_steps", "11"),
        *("--limit", "40", "--validation", "4", "--batch_size", "2"),
    ],
    "chat": ["--max_new_tokens", "8"],
    "evaluate": ["--limit", "2"],
    "inspect": ["--limit", "2"],
}


def run_quickly(commands: list[list[str]]) -> list[str]:
    """Runs `rosa` commands in this process, quickly; returns the names of the commands."""
    for command in commands:
        if "--help" in command:
            with pytest.raises(SystemExit, match="0"):
                main(command)
        else:
            assert main([*command, *QUICK.get(command[0], [])]) == 0, command
    return [command[0] for command in commands]


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the repository's recipes, as a reader's clone has them."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path
