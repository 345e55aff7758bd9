"""The reference and the notes: what can be run in them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rosa.cli.main import main
from tests.docs.conftest import run_quickly
from tests.support.adapters import randomize
from tests.support.pages import blocks, read_page, rosa_commands, section

METHODS = read_page("reference/methods.md")


def test_methods_training_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("{model: rosa-tiny, data: tiny-sums, output_dir: runs/any}")
    commands = [command for command in rosa_commands(METHODS) if command[0] == "train"]
    assert len(run_quickly(commands)) == 3
    for method in ("oft", "dypam"):
        assert (tmp_path / "runs" / method / "adapter_config.json").is_file()


def test_methods_counting_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = rosa_commands(section(METHODS, "## Equal budgets"))
    assert len(found) == 3
    for command in found:  # the counts of a large model are tested elsewhere
        model, *rest = command[1:]
        assert main(["params", "rosa-tiny", *rest, "--methods", "lora,ln_tuning"]) == 0, model
    assert "Nearest to 20,000,000" in capsys.readouterr().out


def test_methods_python_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks(METHODS, "python")
    exec(code, {})
    assert capsys.readouterr().out.strip() == code.split("# ")[-1].strip()


def test_the_projection_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(section(read_page("reference/adapter_format.md"), "## Projections"), "python")
    names: dict[str, Any] = {"__name__": "page"}
    monkeypatch.chdir(tmp_path)
    exec(code, names)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {key.rpartition("rosa_kron.")[2] for key in state if "rosa_kron" in key} == {"U", "V"}
    randomize(names["model"])
    names["model"].save_pretrained("adapter")
    exec(code[code.index("again =") :], names)
    tokens = torch.randint(3, 300, (2, 12))
    with torch.no_grad():
        logits, expected = (names[m].eval()(input_ids=tokens).logits for m in ("again", "model"))
    assert torch.equal(logits, expected)


def test_the_toy_model_answers_as_the_note_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(read_page("notes/tiny_study.md"), "python")
    exec(code, {})
    assert "Ben" in capsys.readouterr().out.splitlines()[-1]
