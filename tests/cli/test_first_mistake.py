"""Of several mistakes the first is told, in one sentence, before anything heavy is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROW = {"instruction": "question", "output": "answer1"}
CALL = (
    "import sys; from rosa.cli.main import main; code = main(sys.argv[1:]); "
    "print('torch' in sys.modules); sys.exit(code)"
)
NEED_PEFT = ("train", "compare", "params")  # for the keys of a recipe's method


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home folder, the working folder too, with files that are right and wrong."""
    (tmp_path / "rows.json").write_text(json.dumps([ROW] * 4))
    (tmp_path / "one.json").write_text(json.dumps([{"question": "a", "answer": "b"}]))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine")
    recipe = "model: rosa-tiny\ndata: rows.json\noutput_dir: out\nvalidation: 0\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    grid = "models: [rosa-tiny]\nmethods: [rosa]\noutput_dir: study\n"
    sets = "training_sets: {a: {data: rows.json, tasks: [tiny-sums]}}\n"
    (tmp_path / "grid.yaml").write_text(grid + sets)
    return tmp_path


def said_by(place: Path, *words: str) -> str:
    """The one line of a command that ends with exit code 2; it has not imported PyTorch."""
    environment = {**os.environ, "HOME": str(place), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout in ("False\n", *(["True\n"] if words[0] in NEED_PEFT else []))
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("export rosa-tiny used", "rosa-tiny is not an adapter"),
        ("export runs/nope out --dtype int8", "unknown dtype 'int8'"),
        ("train recipe.yaml --output_dir used --model runs/nope", "'used' is not empty"),
        ("train recipe.yaml --model runs/nope --data gone.json", "no folder 'runs/nope'"),
        ("train recipe.yaml --data one.json --validation 0.5", "one.json, row 1: a row needs"),
        ("train recipe.yaml --data=~/gone.json", "{home}/gone.json"),
        ("train recipe.yaml --epochs -1 --output_dir used", "epochs must be"),
        ("evaluate runs/nope --tasks boolq", "no folder 'runs/nope'"),
        ("evaluate runs/nope --tasks arc_easy --harness lm-eval", "no folder 'runs/nope'"),
        ("evaluate ~/nope --tasks boolq", "{home}/nope"),
        ("evaluate rosa-tiny --tasks tiny-sums --out ~/used", "{home}/used is not empty"),
        ("evaluate rosa-tiny --tasks boolq --data=~/gone", "{home}/gone"),
        ("evaluate rosa-tiny --forgetting ~/gone.txt", "rosa-tiny' is a base model"),
        ("evaluate runs/nope --rescore --out used", "runs/nope"),
        ("compare grid.yaml --output_dir=~/used", "{home}/used' is not empty"),
        ("compare grid.yaml --models [runs/nope]", "no folder 'runs/nope'"),
        ("compare grid.yaml --models [~/nope]", "{home}/nope"),
        ("inspect runs/nope --data gone.json", "no folder 'runs/nope'"),
        ("inspect rosa-tiny --data ~/gone.json", "{home}/gone.json"),
        ("report ~/nope", "{home}/nope"),
        ("tables runs/nope", "runs/nope"),
        ("plot ~/nope", "{home}/nope"),
        ("params runs/nope", "runs/nope"),
        ("params ~/nope", "{home}/nope"),
        ("convert ~/nope.gguf out", "{home}/nope.gguf"),
        ("reproduce figure1 --model runs/nope", "no folder 'runs/nope'"),
        ("reproduce table1 --data=~/gone", "{home}/gone"),
    ],
)
def test_the_first_mistake_is_told(place: Path, words: str, first: str) -> None:
    assert first.format(home=place) in said_by(place, *words.split())


def test_an_ascii_locale(place: Path) -> None:
    """PyTorch and TRL read files of their own in the locale's encoding."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    row = {"instruction": "Größe — 大きさ?", "output": "groß"}
    (place / "größe.json").write_text(json.dumps([row] * 4, ensure_ascii=False), encoding="utf-8")
    words = ["train", "recipe.yaml", "--data", "größe.json", "--max_steps", "1", "--dls", "null"]
    done = subprocess.run(
        [sys.executable, "-m", "rosa", *words],
        cwd=place,
        env={**os.environ, **ascii_only},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "größe.json" in done.stdout.decode()
    assert "größe.json" in (place / "out" / "recipe.yaml").read_text(encoding="utf-8")
