"""`--rescore`: stored answers read by other rules are what a run under those rules would leave."""

from __future__ import annotations

import shutil

import pytest

from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.evaluate.rescore import rescore
from tests.support.evaluation import evaluate_with, write_test_sets
from tests.support.tiny_folder import tiny_llama, word_tokenizer

LABELS = {"AQuA": "ABCDE", "boolq": ("true", "false"), "MultiArith": ("4", "9.0")}
# Responses that the two protocols read differently, and some that they read alike.
SAID = ("Answer: C", "true or false", "5-3", "A B", "true", "the answer is 9. It took 2 steps")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_test_sets(folder, LABELS, 12, lambda i: f"How many is {i}")


@pytest.fixture
def score(data, monkeypatch):
    """`evaluate` with a model that says the same things whatever it is asked."""
    from rosa.evaluate.generation import Response

    def said(model, tokenizer, prompts, **_options):
        return [Response(SAID[sum(prompt) % len(SAID)], 3) for prompt in prompts]

    monkeypatch.setattr("rosa.evaluate.run.generate", said)
    model, tokenizer = tiny_llama(), word_tokenizer()

    def run(out, protocol="llm-adapters", tasks=tuple(LABELS), **options):
        options = {"data": data, "limit": 9, "seed": 2, "full_responses": True, **options}
        options |= {"run": {"model": "m"}, "trained_on": ["math_10k"]}
        return evaluate_with(model, tokenizer, list(tasks), out=out, protocol=protocol, **options)

    return run


def files(folder):
    return {
        file.name: file.read_text()
        for file in folder.iterdir()
        if file.suffix in (".json", ".jsonl", ".md")
    }


def without_speed(text):
    return [line for line in text.splitlines() if "tokens_per_" not in line]


def test_the_folder_is_that_of_a_run_under_the_other_protocol(score, tmp_path):
    published = score(tmp_path / "published")
    fresh = score(tmp_path / "fresh", "strict")
    again = rescore(tmp_path / "published", "strict", tmp_path / "again")
    assert again.scores == fresh.scores != published.scores
    expected, found = files(tmp_path / "fresh"), files(tmp_path / "again")
    assert found.keys() == expected.keys()
    for name in found:
        if name.startswith("results"):
            drop = without_speed(expected[name])
            assert [x.rstrip(",") for x in without_speed(found[name])] == [
                x.rstrip(",") for x in drop
            ]
        else:
            assert found[name] == expected[name], name


def test_there_and_back_again(score, tmp_path):
    first = score(tmp_path / "published")
    rescore(tmp_path / "published", "strict", tmp_path / "strict")
    back = rescore(tmp_path / "strict", "llm-adapters", tmp_path / "back")
    assert back.scores == first.scores
    assert back.footnotes() == first.footnotes()
    for name in LABELS:
        text = (tmp_path / "published" / f"{name}.jsonl").read_text()
        assert (tmp_path / "back" / f"{name}.jsonl").read_text() == text


def test_an_evaluation_resumes_in_the_new_folder_without_repeating_questions(
    score, tmp_path, monkeypatch
):
    score(tmp_path / "published")
    results = rescore(tmp_path / "published", "strict", tmp_path / "strict")
    monkeypatch.setattr("rosa.evaluate.run.generate", None)
    assert score(tmp_path / "strict", "strict").scores == results.scores


def test_the_answers_that_were_rescored_stay_as_they_are(score, tmp_path):
    score(tmp_path / "published")
    before = files(tmp_path / "published")
    rescore(tmp_path / "published", "strict", tmp_path / "strict")
    assert files(tmp_path / "published") == before


def test_what_cannot_be_rescored_is_one_sentence(score, tmp_path):
    with pytest.raises(RosaError, match=r"no run\.json in .*nowhere; give the folder"):
        rescore(tmp_path / "nowhere", "strict", tmp_path / "out")
    folder = tmp_path / "published"
    score(folder)
    with pytest.raises(RosaError, match="already scored by the protocol llm-adapters"):
        rescore(folder, "llm-adapters", tmp_path / "out")
    with pytest.raises(RosaError, match="unknown protocol 'lax'; choose from llm-adapters, strict"):
        rescore(folder, "lax", tmp_path / "out")
    score(tmp_path / "other", tasks=["boolq"], limit=3)
    with pytest.raises(RosaError, match="holds another run"):
        rescore(folder, "strict", tmp_path / "other")
    assert not (tmp_path / "out").exists()
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "boolq.jsonl").write_text(
        "".join((cut / "boolq.jsonl").read_text().splitlines(True)[1:])
    )
    with pytest.raises(RosaError, match="has 8 answers to boolq where its results count 9"):
        rescore(cut, "strict", tmp_path / "out")
    (cut / "results.json").unlink()
    with pytest.raises(RosaError, match=r"no results\.json in .*finished evaluation"):
        rescore(cut, "strict", tmp_path / "out")


OWN = """name: mine
title: Mine
suite: mine
size: 0
file: mine.jsonl
filter: first_label
answers: [A, B, C]
max_new_tokens: 4
"""


def test_a_task_of_ones_own_is_named_again(score, tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "mine.jsonl").write_text('{"instruction": "How many", "answer": "C"}\n')
    own = str(tmp_path / "mine.yaml")
    score(tmp_path / "published", tasks=[own], data=None)
    with pytest.raises(RosaError, match="'mine' is not built in; give its YAML file with --tasks"):
        rescore(tmp_path / "published", "strict", tmp_path / "strict")
    results = rescore(tmp_path / "published", "strict", tmp_path / "strict", [own])
    assert results["mine"].scored == 1


def test_the_command_puts_the_folder_next_to_the_old_one(score, tmp_path, capsys):
    score(tmp_path / "evaluation")
    words = ["evaluate", str(tmp_path / "evaluation"), "--rescore"]
    assert main([*words, "--protocol", "strict"]) == 0
    shown = capsys.readouterr().out
    assert "rules of the protocol strict" in shown
    assert (tmp_path / "evaluation-strict" / "results.md").is_file()
    assert main(words) == 2
    assert "already" in capsys.readouterr().err
    assert main([*words, "--protocol", "strict", "--limit", "3"]) == 2
    assert "--rescore does not use --limit; leave it out" in capsys.readouterr().err
