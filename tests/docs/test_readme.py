"""README.md: its commands and its Python run, and it names every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from rosa import tiny_model_path
from rosa.cli.main import COMMANDS
from tests.docs.conftest import run_quickly
from tests.support.pages import ROOT, blocks, rosa_commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_commands_run(in_a_copy: Path) -> None:
    assert run_quickly(rosa_commands(README)) == ["params", "train", "chat", "evaluate", "demo"]
    for picture in ("layers.png", "loss.png"):
        assert (in_a_copy / "runs" / "tiny" / picture).is_file()


def test_the_first_block_is_of_a_real_model(in_a_copy: Path, capsys) -> None:
    """It runs on the embedded model, which needs no download."""
    first, *_ = re.findall(r"<!-- real-model -->\n```python\n(.*?)```", README, re.DOTALL)
    hub_id = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert hub_id in first
    exec(first.replace(hub_id, str(tiny_model_path())), {})
    assert "trainable params: 161,280" in capsys.readouterr().out


def test_its_python_runs(in_a_copy: Path) -> None:
    """What is trained is loaded in a new interpreter, which knows nothing of RoSA yet."""
    real, train, load = blocks(README, "python")
    assert "SmolLM2" in real
    exec(train, {})
    done = subprocess.run(
        [sys.executable, "-c", load], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert (in_a_copy / "runs" / "quickstart" / "adapter" / "adapter_config.json").is_file()
    assert len((in_a_copy / "runs/quickstart/dls_history.jsonl").read_text().splitlines()) == 2


def test_it_names_every_command() -> None:
    assert set(re.findall(r"^\| `rosa (\w+)", README, flags=re.MULTILINE)) == set(COMMANDS)


def test_its_test_command_is_make_test() -> None:
    (shell,) = [block for block in blocks(README, "bash") if "make" in block]
    assert re.findall(r"^make \w+", shell, flags=re.MULTILINE) == ["make demo", "make test"]
