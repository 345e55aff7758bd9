"""`rosa demo`: the main job on the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rosa.cli.demo import free_folder
from rosa.cli.main import main

CHANCE = {"tiny-sums": 0.0, "tiny-choice": 25.0}


def test_a_taken_folder_gets_a_number(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "demo") == tmp_path / "demo"
    for taken in ("demo", "demo-2"):
        (tmp_path / taken).mkdir()
    assert free_folder(tmp_path / "demo") == tmp_path / "demo-3"


def test_another_recipe_shows_answers_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, folder = tmp_path / "short.yaml", tmp_path / "demo"
    recipe.write_text(
        "model: rosa-tiny\ndata: [tiny-sums, tiny-choice]\noutput_dir: x\nmax_steps: 2\n"
        "validation: 0\nreport_to: []\nadapter: {r: 2}\n"
    )
    words = ["--recipe", str(recipe), "--output_dir", str(folder), "--limit", "3"]
    assert main(["demo", *words]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  base: ") == printed.count("  RoSA: ") == 3
    assert "tokens per second" in printed
    record = json.loads((folder / "demo.json").read_text())
    assert record["after"]["tasks"][0]["scored"] == 3


@pytest.mark.slow
def test_fine_tuning_teaches_both_tasks(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder)]) == 0
    record = json.loads((folder / "demo.json").read_text())
    for before, after in zip(record["before"]["tasks"], record["after"]["tasks"], strict=True):
        assert before["accuracy"] <= CHANCE[before["name"]] + 20
        assert after["accuracy"] >= before["accuracy"] + 40  # of the sums it learns half, or more
        assert after["scored"] == 250
    for picture in ("loss.png", "layers.png"):
        assert (folder / picture).stat().st_size > 0
