"""Evaluation from end to end: answers on disk, resuming, and folders of other runs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from rosa.errors import RosaError
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.generation import (
    end_tokens,
    generate,
    longest_first_batches,
)
from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.requests import build_requests
from rosa.evaluate.run import answer_record
from rosa.evaluate.tasks import built_in_tasks
from tests.support.evaluation import evaluate_with, read_answers, write_test_sets
from tests.support.tiny_folder import tiny_llama, word_tokenizer

WORDS = ["Please", "choose", "the", "correct", "answer", "question", "How", "many", "has", "is"]


NEW_TOKENS = 8
ROWS = 15


def question(i: int) -> str:
    """Questions of many lengths, all different."""
    return " ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(3 + i * 5 % 23)) + f" {i % 40}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    labels = {
        "boolq": ("true", "false"),
        "hellaswag": ("ending1", "ending4"),
        "gsm8k": ("4", "9.0"),
    }
    return write_test_sets(folder, labels, ROWS, question)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="module")
def score(model, tokenizer, data):
    """`evaluate` on the tiny model: 8 new tokens, batches of 4."""

    def run(tasks=("boolq", "gsm8k"), **options):
        options = {"data": data, "max_new_tokens": NEW_TOKENS, "batch_size": 4, **options}
        return evaluate_with(model, tokenizer, list(tasks), **options)

    return run


@pytest.fixture(scope="module")
def whole(score, tmp_path_factory):
    """The folder of an uninterrupted run, and its results."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, score(out=folder)


def test_every_example_leaves_one_line_and_the_counts_follow_from_them(whole):
    folder, results = whole
    for name in ("boolq", "gsm8k"):
        task, records = built_in_tasks()[name], read_answers(folder, name)
        assert sorted(r["index"] for r in records) == list(range(ROWS))
        for r in records:
            assert r["prediction"] == task.parse(r["response"])
            assert r["correct"] == task.is_correct(r["prediction"], r["label"])
        assert results[name].correct == sum(r["correct"] for r in records)
        assert results[name].unparsable == sum(r["prediction"] is None for r in records)
        assert results[name].scored == results[name].rows == ROWS
    assert 0 < results["boolq"].correct < ROWS  # the tiny model's answers vary: the test can tell


def test_answers_are_those_of_plain_greedy_decoding(score, tmp_path, model, tokenizer):
    """An independent loop: one prompt at a time, no cache, no padding."""
    score(["boolq"], out=tmp_path / "out", full_responses=True)
    for record in read_answers(tmp_path / "out", "boolq")[:6]:
        ids = tokenizer(record["prompt"], return_tensors="pt")["input_ids"]
        new: list[int] = []
        while len(new) < NEW_TOKENS:
            with torch.no_grad():
                token = int(model(ids).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        assert record["response"] == tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 64])
def test_batch_size_changes_no_answer(score, whole, tmp_path, batch_size):
    score(out=tmp_path / "other", batch_size=batch_size)
    for name in ("boolq", "gsm8k"):
        assert read_answers(whole[0], name) == read_answers(tmp_path / "other", name)


def test_without_a_folder_the_scores_are_the_same(score, whole):
    assert score(["boolq"]).scores == [whole[1]["boolq"]]


@pytest.mark.parametrize(("whole_lines", "torn_bytes"), [(0, 0), (4, 1), (6, 50), (7, 0)])
def test_a_torn_file_resumes_to_the_same_bytes(score, whole, tmp_path, whole_lines, torn_bytes):
    """Killed before, between and inside batches of 4, at and inside a line."""
    folder, results = whole
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    (torn / "results.json").unlink()
    written = (folder / "boolq.jsonl").read_bytes().splitlines(keepends=True)
    kept = [*written[:whole_lines], written[whole_lines][:torn_bytes]]
    (torn / "boolq.jsonl").write_bytes(b"".join(kept))
    assert score(out=torn).scores == results.scores
    for name in ("boolq.jsonl", "gsm8k.jsonl"):
        assert (torn / name).read_bytes() == (folder / name).read_bytes()


def test_ctrl_c_loses_nothing_and_the_same_call_resumes(score, whole, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **kwargs):
        if len(calls) == 6:
            raise KeyboardInterrupt
        calls.append(args)
        return generate(*args, **kwargs)

    monkeypatch.setattr("rosa.evaluate.run.generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score(out=tmp_path / "cut")
    assert len(read_answers(tmp_path / "cut", "boolq")) == ROWS
    assert len(read_answers(tmp_path / "cut", "gsm8k")) == 8  # two of four batches
    assert not (tmp_path / "cut" / "results.json").exists()

    calls.clear()
    assert score(out=tmp_path / "cut").scores == whole[1].scores
    assert len(calls) == 2  # the batches that were missing, and no other
    for name in ("boolq", "gsm8k"):
        assert read_answers(tmp_path / "cut", name) == read_answers(whole[0], name)


def test_a_finished_run_asks_nothing_again(score, whole, monkeypatch):
    folder, results = whole
    monkeypatch.setattr("rosa.evaluate.run.generate", None)
    assert score(out=folder).scores == results.scores


def test_more_tasks_may_join_a_run(score, tmp_path):
    score(["boolq"], limit=3, out=tmp_path / "out")
    results = score(["boolq", "hellaswag"], limit=3, out=tmp_path / "out")
    assert [s.name for s in results.scores] == ["boolq", "hellaswag"]
    assert set(json.loads((tmp_path / "out" / "run.json").read_text())["tasks"]) == {
        "boolq",
        "hellaswag",
    }


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"limit": 5}, "its limit is 3, now 5"),
        ({"seed": 1}, "its seed is 0, now 1"),
        ({"num_beams": 2}, "its num_beams is 1, now 2"),
        ({"full_responses": True}, "its full_responses is False, now True"),
        ({"run": {"model": "b"}}, "its model is 'a', now 'b'"),
        ({"max_new_tokens": 3}, "other questions of the task boolq"),
    ],
)
def test_a_folder_of_another_run_raises_and_stays_untouched(score, tmp_path, other, complaint):
    out = tmp_path / "out"
    score(["boolq"], out=out, limit=3, run={"model": "a"})
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(RosaError, match=complaint):
        score(["boolq"], out=out, **{"run": {"model": "a"}, "limit": 3, **other})
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_changed_data_is_another_run(score, data, tmp_path):
    score(["boolq"], limit=ROWS - 1, out=tmp_path / "out")
    rows = json.loads((data / "boolq" / "test.json").read_text())
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "test.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(RosaError, match="other questions of the task boolq"):
        score(["boolq"], data=tmp_path, limit=ROWS - 1, out=tmp_path / "out")


def test_a_folder_with_other_files_or_a_file_raises(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RosaError, match="not empty and holds no evaluation"):
        EvaluationFolder(tmp_path).claim({"model": "a"}, {})
    with pytest.raises(RosaError, match="is a file"):
        EvaluationFolder(tmp_path / "notes.txt").claim({"model": "a"}, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RosaError, match="cannot read"):
        EvaluationFolder(tmp_path).claim({"model": "a"}, {})


def test_a_damaged_line_in_the_middle_is_named(score, tmp_path):
    score(["boolq"], limit=6, out=tmp_path / "out")
    file = tmp_path / "out" / "boolq.jsonl"
    rows = file.read_text().splitlines()
    rows[4] = rows[4][:30]
    file.write_text("\n".join(rows) + "\n")
    with pytest.raises(RosaError, match=r"boolq\.jsonl, row 5 is damaged"):
        score(["boolq"], limit=6, out=tmp_path / "out")


def test_limit_is_a_seeded_sample(data):
    def indices(**options):
        (requests,) = build_requests(["boolq"], EvaluationOptions(data=data, **options))
        assert requests.rows == ROWS
        return [e.index for e in requests.examples]

    assert indices(limit=6) == indices(limit=6, seed=0)
    assert indices(limit=6) != indices(limit=6, seed=1)
    assert len(set(indices(limit=6))) == 6
    assert indices(limit=99) == indices() == list(range(ROWS))


@pytest.mark.parametrize(
    "bad", [{"limit": 0}, {"max_new_tokens": 0}, {"batch_size": 0}, {"num_beams": -1}]
)
def test_numbers_below_one_raise(score, bad):
    (name,) = bad
    with pytest.raises(RosaError, match=f"{name} must be at least 1"):
        score(["boolq"], **bad)


def test_bad_data_is_found_before_anything_is_generated(score, tmp_path):
    with pytest.raises(RosaError, match="for the task boolq"):
        score(["boolq"], data=tmp_path / "nowhere", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_beams_are_an_option_that_the_results_state(score):
    assert score(["boolq"], num_beams=3, limit=4).settings["num_beams"] == 3


def test_a_model_goes_back_to_training(score, model):
    model.train()
    try:
        score(["boolq"], limit=2)
        assert model.training
    finally:
        model.eval()


def test_a_response_ends_at_any_end_token_of_the_model(model, tokenizer):
    prompts = [tokenizer(question(3))["input_ids"]]
    (response,) = generate(model, tokenizer, prompts, max_new_tokens=12)
    assert response.tokens == 12
    third = tokenizer.convert_tokens_to_ids(response.text.split()[2])
    model.generation_config.eos_token_id = [2, third]
    try:
        assert end_tokens(model, tokenizer) == sorted({2, third})
        (cut,) = generate(model, tokenizer, prompts, max_new_tokens=12)
    finally:
        model.generation_config.eos_token_id = 2
    words = response.text.split()
    assert cut.text.split() == words[: words.index(words[2])]


def test_batches_are_longest_first_and_lose_no_one():
    lengths = [3, 9, 1, 9, 5, 7, 2]
    batches = longest_first_batches(lengths, 3)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(7))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert flat[:2] == [1, 3]  # ties in the order of the test set


def test_a_judgement_keeps_what_was_asked_and_said(data):
    (requests,) = build_requests(["gsm8k"], EvaluationOptions(data=data, limit=1))
    record = answer_record(requests.task, requests.examples[0], "none")
    assert list(record) == ["index", "prompt", "response", "prediction", "label", "correct"]
    assert record["prediction"] is None
    assert record["correct"] is False
