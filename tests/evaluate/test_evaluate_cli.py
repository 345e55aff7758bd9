"""`rosa evaluate` as a user runs it."""

from __future__ import annotations

import json

import pytest
from peft import get_peft_model

from rosa import RosaConfig
from rosa.cli.main import main
from rosa.evaluate.tasks import built_in_tasks
from tests.support.tiny_folder import tiny_llama, write_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_model_folder(tmp_path_factory.mktemp("models") / "tiny"))


def test_a_model_is_scored_and_the_files_are_there(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "tiny-choice,tiny-sums", "--limit", "5", "--max_new_tokens", "6"]
    assert main(["evaluate", model, *words]) == 0
    out = tmp_path / "runs" / "evaluate-tiny"
    shown = capsys.readouterr().out
    assert "tiny-choice" in shown
    assert "5 of 250, seed 0" in shown
    assert "runs/evaluate-tiny" in shown
    assert len((out / "tiny-sums.jsonl").read_text().splitlines()) == 5
    results = json.loads((out / "results.json").read_text())
    assert [t["scored"] for t in results["tasks"]] == [5, 5]
    assert results["settings"]["model"] == model
    assert results["settings"]["protocol"] == "llm-adapters"
    assert "| task | accuracy |" in (out / "results.md").read_text()


def test_an_adapter_is_scored_inside_its_own_folder(model, tmp_path, capsys):
    base = tiny_llama()
    base.name_or_path = model
    adapter = tmp_path / "adapter"
    get_peft_model(base, RosaConfig(r=4, task_type="CAUSAL_LM")).save_pretrained(adapter)
    (adapter / "recipe.yaml").write_text("data: math_10k.json\n")
    words = ["--tasks", "tiny-sums", "--limit", "3", "--max_new_tokens", "4"]
    assert main(["evaluate", str(adapter), *words]) == 0
    results = json.loads((adapter / "evaluation" / "results.json").read_text())
    assert results["settings"]["adapter"] == str(adapter)
    assert results["settings"]["model"] == model
    assert results["settings"]["trained_on"] == ["math_10k.json"]
    # Untrained, so it answers as the base model does.
    out = tmp_path / "base"
    assert main(["evaluate", model, *words, "--out", str(out)]) == 0
    answers = (out / "tiny-sums.jsonl").read_bytes()
    assert (adapter / "evaluation" / "tiny-sums.jsonl").read_bytes() == answers
    capsys.readouterr()
    assert main(["evaluate", str(adapter), *words, "--base_results", str(out)]) == 0
    shown = capsys.readouterr()
    assert "base model and adapter" in shown.out
    assert str(out) in shown.out
    assert "0 of 3 answers are correct" in shown.err  # a line per task, without a terminal
    wrong = ["--base_results", str(adapter / "evaluation")]
    assert main(["evaluate", str(adapter), *words, *wrong]) == 2
    assert "not of its base" in capsys.readouterr().err
    assert main(["evaluate", model, *words, "--base_results", str(out)]) == 2
    assert "is a base model" in capsys.readouterr().err


def test_the_base_models_results_are_found(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = tiny_llama()
    base.name_or_path = model
    get_peft_model(base, RosaConfig(r=4, task_type="CAUSAL_LM")).save_pretrained("adapter")
    words = ["--tasks", "tiny-sums", "--max_new_tokens", "4", "--limit"]
    for name, limit in ((model, "3"), ("adapter", "3"), (str(tmp_path / "adapter"), "2")):
        out = ["--out", "other"] if limit == "2" else []
        assert main(["evaluate", name, *words, limit, *out]) == 0
    shown = capsys.readouterr().out
    assert shown.count("Accuracy in percent, base model and adapter") == 1
    assert "no comparison with the base model: runs/evaluate-tiny has no task" in shown


def test_the_strict_protocol_has_a_folder_of_its_own(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--tasks", "tiny-sums", "--limit", "3", "--max_new_tokens", "4", "--num_fewshot", "1"]
    assert main(["evaluate", model, *words, "--protocol", "strict"]) == 0
    results = json.loads((tmp_path / "runs/evaluate-tiny-strict/results.json").read_text())
    assert results["settings"]["protocol"] == "strict"
    assert results["settings"]["num_fewshot"] == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "rules of the protocol strict" in shown
    assert "1 worked example precedes each question" in shown


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks", "tiny-sums", "--fewshot_data", "x.json"], "set num_fewshot too"),
        (["--tasks", "tiny-sums", "--prompt", "chat"], "has no chat template"),
        (["--tasks", "tiny-sums", "--protocol", "lax"], "protocol"),
        (["--tasks", "bolq"], "did you mean 'boolq'?"),
        (["--tasks", "boolq", "--data", "nowhere"], "for the task boolq"),
        (["--tasks", "boolq", "--bach_size", "2"], "did you mean 'batch_size'?"),
        (["--tasks", "tiny-sums", "--limit", "none"], "limit"),
        (["--tasks", "tiny-sums", "--dtype", "fp8"], "dtype"),
        ([], "tasks"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(model, words, complaint, capsys):
    assert main(["evaluate", model, *words]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("rosa evaluate: ")
    assert said.count("\n") == 1


def test_another_runs_folder_exits_with_2(model, tmp_path, capsys):
    words = ["evaluate", model, "--tasks", "tiny-sums", "--max_new_tokens", "2"]
    out = ["--out", str(tmp_path / "out")]
    assert main([*words, "--limit", "2", *out]) == 0
    assert main([*words, "--limit", "3", *out]) == 2
    assert "holds another run: its limit is 2, now 3" in capsys.readouterr().err
    assert len((tmp_path / "out" / "tiny-sums.jsonl").read_text().splitlines()) == 2


def test_every_real_test_set_there_is_scored(model, shared_data, tmp_path):
    there = [
        task.name
        for task in built_in_tasks().values()
        if (shared_data / "test" / task.file).is_file()
    ]
    assert len(there) >= 12
    words = ["--data", str(shared_data / "test"), "--limit", "3", "--max_new_tokens", "4"]
    out = tmp_path / "out"
    assert main(["evaluate", model, "--tasks", *there, *words, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [task["scored"] for task in results["tasks"]] == [3] * len(there)
    marked = {task["name"] for task in results["tasks"] if task["seen_in_training"]}
    assert marked == {"MultiArith", "AddSub", "SingleEq"}
