"""Adapters, runs, evaluations and studies that commit 8dbd408 wrote load, resume and report.

`tests/fixtures/written_by_8dbd408/README.md` says how they were made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import rosa
from rosa.cli.main import main

WRITTEN = Path(__file__).parents[1] / "fixtures" / "written_by_8dbd408"
TOY_MODEL = "/installed/rosa/assets/rosa-tiny"
LOGITS = json.loads((WRITTEN / "adapters" / "logits.json").read_text())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was written, whose paths of the toy model lead to the one installed here."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    for suffix in ("json", "md"):
        for file in tmp_path.rglob(f"*.{suffix}"):
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace(TOY_MODEL, str(rosa.tiny_model_path())), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", LOGITS)
def test_an_adapter_gives_the_same_logits(name: str, folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(rosa.tiny_model_path())
    model = PeftModel.from_pretrained(base, folder / "adapters" / name).eval()
    with torch.no_grad():
        logits = model(torch.arange(40, 72)[None]).logits[0, -1, :16]
    torch.testing.assert_close(logits, torch.tensor(LOGITS[name]), atol=1e-4, rtol=1e-4)


def test_a_killed_run_resumes_and_ends_with_the_adapter_of_the_uninterrupted_one(
    folder: Path,
) -> None:
    assert main(["train", "run.yaml", "--output_dir", "killed", "--resume"]) == 0
    metrics = Path("killed/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics]
    assert steps == sorted(steps)
    assert steps[0] == 4  # the validation before the kill is still there
    expected = load_file("run/adapter_model.safetensors")
    resumed = load_file("killed/adapter_model.safetensors")
    assert resumed.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(resumed[key], weight, atol=1e-4, rtol=1e-3)


def test_a_finished_run_is_finished_and_its_layers_can_be_drawn(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("run/adapter_model.safetensors").stat().st_mtime_ns
    assert main(["train", "run.yaml", "--resume"]) == 2
    assert "already finished" in capsys.readouterr().err
    assert Path("run/adapter_model.safetensors").stat().st_mtime_ns == before
    assert main(["plot", "run", "--out", "layers.png"]) == 0
    assert Path("layers.png").is_file()


def test_an_evaluation_is_resumed(folder: Path) -> None:
    """One answer of the second task is missing: only that task is asked again."""
    file = Path("evaluation/tiny-sums.jsonl")
    whole = file.read_text(encoding="utf-8")
    file.write_text("".join(whole.splitlines(keepends=True)[:-1]), encoding="utf-8")
    kept = Path("evaluation/tiny-choice.jsonl").read_text(encoding="utf-8")
    asked = ["--tasks", "toy", "--limit", "6", "--out", "evaluation"]
    assert main(["evaluate", "run", *asked]) == 0
    assert Path("evaluation/tiny-choice.jsonl").read_text(encoding="utf-8") == kept
    verdicts = [
        [(row["index"], row["correct"]) for row in map(json.loads, text.splitlines())]
        for text in (whole, file.read_text(encoding="utf-8"))
    ]
    assert verdicts[0] == verdicts[1]


def test_a_study_is_reported_unchanged(folder: Path) -> None:
    assert main(["tables", "study"]) == 0
    assert main(["report", "study"]) == 0
    page = Path("study/report.html").read_text(encoding="utf-8")
    assert "rosa-tiny" in page
    assert "lora" in page.lower()


def test_a_study_resumes_with_the_run_that_is_missing(folder: Path) -> None:
    missing = Path("study/runs/rosa-tiny/toy/rosa/seed-2")
    shutil.rmtree(missing)
    Path("study/status/runs/rosa-tiny/toy/rosa/seed-2.json").unlink()
    before = json.loads(Path("study/results.json").read_text())
    adapters = sorted(Path("study").rglob("adapter_model.safetensors"))
    written = {file: file.stat().st_mtime_ns for file in adapters}
    assert main(["compare", "grid.yaml", "--workers", "1"]) == 0
    assert (missing / "adapter_model.safetensors").is_file()
    assert all(file.stat().st_mtime_ns == time for file, time in written.items())
    after = json.loads(Path("study/results.json").read_text())
    assert len(after["runs"]) == len(before["runs"]) == 4
