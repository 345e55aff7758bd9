"""reference/methods.md: its recipe and commands run, its Python prints what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rosa.cli.main import main
from tests.support.pages import blocks

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference/methods.md").read_text(encoding="utf-8")
QUICK = ["--max_steps", "2", "--limit", "40", "--validation", "4", "--report_to", "[]"]


def commands(name: str) -> list[list[str]]:
    lines = [line.split("#")[0] for block in blocks(PAGE, "bash") for line in block.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith(f"rosa {name}")]


def test_the_pages_training_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(blocks(PAGE, "yaml")[0])
    found = commands("train")
    assert len(found) == 5
    for command in found:
        if "--help" in command:
            with pytest.raises(SystemExit, match="0"):
                main(command)
        else:
            assert main([*command, *QUICK]) == 0, command
    assert {f.name for f in Path("runs").iterdir()} == {"lora", "dora", "oft"}


def test_the_pages_commands_that_count_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = commands("params")
    assert len(found) == 3
    for command in found:  # the counts of a large model are tested elsewhere
        model, *rest = command[1:]
        assert main(["params", "rosa-tiny", *rest, "--methods", "lora,ln_tuning"]) == 0, model
    assert "Nearest to 20,000,000" in capsys.readouterr().out


def test_the_pages_python_prints_what_it_says() -> None:
    [code] = blocks(PAGE, "python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == code.split("# ")[-1].strip()
