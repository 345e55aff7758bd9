"""lm-evaluation-harness: our models in it, against log-likelihoods computed here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

import rosa
from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.models import loading as models
from tests.support.adapters import randomize
from tests.support.pages import read_page

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from rosa.common.tables.render import terminal
from rosa.evaluate.lm_eval import find_tasks, results_table, run_lm_eval

FOLDER = Path(__file__).parents[1] / "fixtures" / "lm_eval"
ROWS = [json.loads(line) for line in (FOLDER / "places.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _where_the_data_is(monkeypatch):
    monkeypatch.chdir(FOLDER)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A RoSA adapter of rosa-tiny with weights far from their start."""
    model = models.load("rosa-tiny").model
    model.name_or_path = rosa.tiny_model_path()
    adapted = get_peft_model(model, rosa.RosaConfig(r=4, alpha=1.0, task_type="CAUSAL_LM"))
    randomize(adapted)
    folder = tmp_path_factory.mktemp("adapters") / "places"
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def suite():
    return find_tasks(["places"], FOLDER)


def log_likelihoods(loaded, row):
    """Of each choice after the question: no batch, no padding, no cache."""
    prompt = f"{row['question']}\nAnswer:"
    before = loaded.tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = []
    for choice in row["choices"]:
        ids = loaded.tokenizer(f"{prompt} {choice}", return_tensors="pt")["input_ids"]
        start = before.shape[1]
        assert torch.equal(ids[:, :start], before)
        with torch.no_grad():
            log_p = loaded.model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
        found.append(float(log_p.gather(-1, ids[0, start:, None]).sum()))
    return found


def test_base_and_adapter_are_scored_by_their_own_log_likelihoods(adapter, suite):
    said = {}
    for name in ("rosa-tiny", str(adapter)):
        loaded = models.load(name)
        results = run_lm_eval(loaded, suite, batch_size=3, log_samples=True)
        samples = sorted(results["samples"]["places"], key=lambda sample: sample["doc_id"])
        ours = [log_likelihoods(loaded, row) for row in ROWS]
        theirs = [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-4, atol=1e-4)
        best = [scores.index(max(scores)) for scores in ours]
        right = sum(b == row["answer"] for b, row in zip(best, ROWS, strict=True))
        assert results["results"]["places"]["acc,none"] == pytest.approx(right / len(ROWS))
        shown = [line.split() for line in terminal(results_table(results)).splitlines()]
        (row,) = [words for words in shown if words[:1] == ["places"]]
        assert row[:4] == ["places", "0", "acc", f"{right / len(ROWS):.4f}"]
        said[name] = torch.tensor(ours)
    base, adapted = said.values()
    assert (base - adapted).abs().min() > 1e-3  # the adapter was really there


def test_the_command_scores_an_adapter_and_keeps_the_results_in_its_folder(adapter, capsys):
    words = ["--harness", "lm-eval", "--tasks", "places", "--task_dir", str(FOLDER)]
    assert main(["evaluate", str(adapter), *words, "--limit", "4", "--num_fewshot", "1"]) == 0
    shown = capsys.readouterr().out
    assert "places" in shown
    (file,) = (adapter / "lm-eval").glob("results_*.json")
    assert file.name in shown.replace("\n", "")
    results = json.loads(file.read_text())
    assert results["n-samples"]["places"] == {"original": len(ROWS), "effective": 4}
    assert results["n-shot"]["places"] == 1
    assert results["rosa"]["adapter"] == str(adapter)
    assert results["rosa"]["weights"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks", "places", "--protocol", "strict"], "does not use --protocol; leave it out"),
        (["--tasks", "places", "--data", "x"], "does not use --data"),
        (["--tasks", "places", "--prompt", "alpaca"], "only --prompt chat can be used"),
        (["--tasks", "places", "--prompt", "chat"], "tokenizer has no chat template"),
        (["--tasks", "places", "--task_dir", "nowhere"], "no folder nowhere for --task_dir"),
        ([], "needs --tasks"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(words, complaint, capsys):
    if "--task_dir" not in words:
        words = [*words, "--task_dir", str(FOLDER)]
    assert main(["evaluate", "rosa-tiny", "--harness", "lm-eval", *words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert complaint in said[-1]
    assert said[-1].startswith("rosa evaluate: ")


def test_a_task_that_cannot_be_loaded_is_one_sentence(suite, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where its data is not
    with pytest.raises(RosaError, match="lm-eval cannot run places: "):
        run_lm_eval(models.load("rosa-tiny"), suite)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RosaError, match=r"needs the package lm-eval.*pip install lm-eval"):
        find_tasks(["places"])


def test_options_of_the_harness_without_it_raise(capsys):
    assert main(["evaluate", "rosa-tiny", "--tasks", "toy", "--task_dir", "."]) == 2
    assert "add --harness lm-eval" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unknown_task_names_the_nearest_of_the_harness():
    with pytest.raises(RosaError, match=r"no task 'arc_esy' \(did you mean 'arc_easy'\?\)"):
        find_tasks(["arc_esy"])


@pytest.mark.slow
def test_lm_evals_own_command_loads_a_rosa_adapter_after_import_rosa(adapter, tmp_path):
    """The command of evaluating.md; without `import rosa` it raises the error shown there."""
    page = read_page("guides/evaluating.md")
    (start,) = [
        line.split('"')[1] for line in page.splitlines() if "cli_evaluate" in line and '"' in line
    ]
    model = f"pretrained={rosa.tiny_model_path()},peft={adapter},dtype=float32"
    words = ["run", "--model", "hf", "--model_args", model, "--tasks", "places", "--device", "cpu"]
    words += ["--include_path", str(FOLDER), "--output_path", str(tmp_path)]

    def run(code):
        return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)

    done = run(start)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]["places"]["acc,none"]
    ours = run_lm_eval(models.load(str(adapter)), find_tasks(["places"], FOLDER))
    assert theirs == pytest.approx(ours["results"]["places"]["acc,none"])
    plain = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(adapter)!r})"
    without = subprocess.run([sys.executable, "-c", plain], capture_output=True, text=True)
    assert "KeyError: 'ROSA'" in without.stderr
