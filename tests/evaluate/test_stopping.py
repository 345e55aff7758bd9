"""Responses that end where their answer is decided: nothing that follows could change the score."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rosa import tiny_model_path
from rosa.cli.main import main
from rosa.compare.grid import STUDY_OPTIONS
from rosa.errors import RosaError
from rosa.evaluate.answer_filters import FILTERS, PROTOCOLS
from rosa.evaluate.examples import load_examples
from rosa.evaluate.generation import generate
from rosa.evaluate.requests import TaskRequests
from rosa.evaluate.rescore import rescore
from rosa.evaluate.run import run_evaluation
from rosa.evaluate.stopping import RowStoppingCriteria, settled_text
from rosa.evaluate.tasks import built_in_tasks
from rosa.models.loading import load
from tests.support.evaluation import evaluate_with, read_answers, write_test_sets
from tests.support.tiny_folder import WORDS, tiny_llama, word_tokenizer, write_model_folder

first_label = FILTERS["first_label"]
TASKS = list(built_in_tasks().values())

# Labels that begin, contain and extend one another, and text made of their pieces.
labels = st.lists(st.text("ab1 ", min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@given(answers=labels, text=st.text("ab1 ", max_size=12))
@example(answers=["a1", "a10"], text="a10")
@example(answers=["b", "ab 1"], text="ab 1")
def test_decided_means_that_nothing_can_change_it_and_is_no_later_than_that(answers, text):
    """By brute force: every ending of every label is tried as what follows."""
    ends = {label[i:] for label in answers for i in range(len(label))}
    for n in range(len(text) + 1):
        found = first_label.parse(text[:n], answers)
        fixed = found is not None and all(
            first_label.parse(text[:n] + end, answers) == found for end in ends
        )
        assert first_label.decided(text[:n], answers) == fixed
        if fixed:
            assert first_label.parse(text, answers) == found


@given(data=st.data(), task=st.sampled_from(TASKS))
@settings(max_examples=200)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_text_where_an_answer_is_decided_reads_as_the_whole_text(protocol, task, data):
    pieces = [*task.answers, *(a[:-1] for a in task.answers), *" .,\n1235-", "A", "é", "the", "is"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=12)))
    stop_when = task.early_stop(protocol)
    decided = [n for n in range(len(text) + 1) if stop_when and stop_when(text[:n])]
    if decided:
        assert decided == list(range(decided[0], len(text) + 1))
        assert task.parse(text[: decided[0]], protocol) == task.parse(text, protocol) is not None
    elif stop_when:
        assert task.parse(text, protocol) is None


def test_numbers_and_strict_rules_are_decided_by_complete_responses_only():
    early = {(p, name) for p, rules in PROTOCOLS.items() for name in rules if rules[name].decided}
    assert early == {("llm-adapters", "first_label")}


# --- what a tokenizer may still change ---


def byte_fallback_tokenizer() -> Any:
    """Llama-2's way of decoding: a space is ▁, the first one is dropped, bytes are pieces."""
    marks = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁true", "tru", "e", "é", "A", "1"]
    vocab = {piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *marks])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def cleaning_tokenizer() -> Any:
    """Words joined by spaces, some of which are removed again before what follows them."""
    words = ["<unk>", "n", "'", "n't", "'s", "s", ".", "'re", "re", "'v", "true", "is"]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), unk_token="<unk>", clean_up_tokenization_spaces=True
    )


TOKENIZERS = {
    "words": word_tokenizer(),
    "bytes": AutoTokenizer.from_pretrained(tiny_model_path()),
    "byte fallback": byte_fallback_tokenizer(),
    "cleaning": cleaning_tokenizer(),
}
UNTIL = [None, "\n\n", "true is", "is A", "Below is"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data(), until=st.sampled_from(UNTIL))
@settings(max_examples=80, deadline=None)
def test_settled_text_is_what_the_whole_response_begins_with(name, data, until):
    tokenizer = TOKENIZERS[name]
    some = tokenizer(f"true is A 1 é漢\n\n{until}", add_special_tokens=False)["input_ids"]
    token = st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from(some))
    ids = data.draw(st.lists(token, min_size=1, max_size=10))
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    whole = (whole.split(until)[0] if until else whole).strip()
    for n in range(1, len(ids) + 1):
        assert whole.startswith(settled_text(ids[:n], tokenizer, until))


def test_settled_text_waits_for_what_may_change_and_for_nothing_else():
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer("the answer is A漢", add_special_tokens=False)["input_ids"]
    assert settled_text(ids, tokenizer) == "the answer is A漢"
    assert settled_text(ids[:-1], tokenizer) == "the answer is A"
    # "B" alone would be an answer; in the text that ends the response it is none.
    begun = tokenizer("It is C. Below is an in", add_special_tokens=False)["input_ids"]
    assert settled_text(begun, tokenizer, "Below is an instruction") == "It is C."
    cleaning = TOKENIZERS["cleaning"]
    ids = cleaning.convert_tokens_to_ids(["is", "n", "'", "true"])
    assert cleaning.decode(ids) == "isn'true"
    assert [settled_text(ids[:n], cleaning) for n in (2, 3)] == ["is", "is"]
    fallback = TOKENIZERS["byte fallback"]
    a, bad = (fallback.convert_tokens_to_ids(piece) for piece in ("<0x41>", "<0xFF>"))
    assert fallback.decode([a]) == "A"
    assert "A" not in fallback.decode([a, bad])
    assert settled_text([a], fallback) == ""


# --- rows of a batch ---


def run_rows(criteria: RowStoppingCriteria, rows: list[str]) -> list[bool]:
    """The rows token by token, as greedy generation would show them."""
    ids = torch.tensor([[WORDS.index(word) for word in row.split()] for row in rows])
    for length in range(criteria._start + 1, ids.shape[1] + 1):
        finished = criteria(ids[:, :length], None)
    return finished.tolist()


def test_a_label_that_begins_in_the_prompt_does_not_count():
    decided = partial(first_label.decided, labels=["answer 1", "2"])
    criteria = RowStoppingCriteria(word_tokenizer(), 2, [2], stop_when=decided)
    rows = ["is answer 1 the", "is answer the 2", "2 2 2 the"]
    assert run_rows(criteria, rows) == [False, True, True]
    assert criteria.lengths == {1: 2, 2: 1}


def test_a_finished_row_stays_finished_and_others_continue():
    decided = partial(first_label.decided, labels=["true", "false"])
    criteria = RowStoppingCriteria(word_tokenizer(), 0, [2], "has", decided)
    rows = ["true the the </s>", "the </s> true the", "the is the the", "the has </s> true"]
    assert run_rows(criteria, rows) == [True, True, False, True]
    assert criteria.lengths == {0: 1, 1: 2, 3: 2}


def test_beams_change_rows_so_nothing_is_remembered_of_them_nor_decided():
    criteria = RowStoppingCriteria(word_tokenizer(), 0, [2], "has", lambda text: True, greedy=False)
    rows = ["has the the the", "the is the has", "the is the </s>"]
    assert run_rows(criteria, rows) == [False, True, True]
    assert criteria.lengths == {}


PROMPTS = [[5 + i, 6, 7 + 3 * i, 8] for i in range(8)]


@pytest.mark.parametrize(("pad", "end"), [("<pad>", "</s>"), ("</s>", "is")])
def test_each_row_ends_separately_and_tokens_are_counted_without_padding(pad, end):
    model, tokenizer = tiny_llama(seed=3), word_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = pad, end
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    ask = partial(generate, model, tokenizer, max_new_tokens=16)
    decided = partial(first_label.decided, labels=[w for w in WORDS if w.startswith("ending")])
    whole, cut = ask(PROMPTS), ask(PROMPTS, stop_when=decided)
    assert cut == [ask([prompt], stop_when=decided)[0] for prompt in PROMPTS]
    for before, after in zip(whole, cut, strict=True):
        said = before.text.split()
        found = [i for i, word in enumerate(said) if word.startswith("ending")]
        assert after.text.split() == (said[: found[0] + 1] if found else said)
        assert after.tokens == (found[0] + 1 if found else before.tokens)
    assert len({response.tokens for response in cut}) > 2
    with_text = ask(PROMPTS, until="ending")
    assert [r.tokens for r in with_text] == [r.tokens for r in cut]


@pytest.mark.parametrize("place", range(0, 6, 2))
def test_a_label_in_the_text_that_ends_a_response_is_no_answer(place):
    """As "B" in "Below is an instruction", where a model invents a next few-shot example."""
    ask = partial(generate, tiny_llama(seed=3), word_tokenizer(), max_new_tokens=16)
    said = ask(PROMPTS[:1])[0].text.split()
    until, answers = " ".join(said[place : place + 3]), [said[place], said[place + 2]]
    whole = ask(PROMPTS, until=until)
    cut = ask(PROMPTS, until=until, stop_when=partial(first_label.decided, labels=answers))
    for before, after in zip(whole, cut, strict=True):
        assert before.text.startswith(after.text)
        assert first_label.parse(after.text, answers) == first_label.parse(before.text, answers)


# --- evaluations ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {"boolq": ("true", "false"), "AQuA": "ABCDE", "gsm8k": ("4", "9.0")}
    folder = tmp_path_factory.mktemp("data")
    return write_test_sets(folder, labels, 13, lambda i: " ".join(WORDS[5 + i : 9 + i * 2]))


@pytest.fixture(scope="module")
def score(data: Path):
    model, tokenizer = tiny_llama(seed=6), word_tokenizer()

    def run(out: Path, tasks=("boolq", "AQuA", "gsm8k"), **options: Any):
        options = {"data": data, "max_new_tokens": 20, "batch_size": 4, **options}
        return evaluate_with(model, tokenizer, list(tasks), out=out, **options)

    return run


@pytest.fixture(scope="module")
def whole(score, tmp_path_factory: pytest.TempPathFactory):
    """The folder of a run with full responses, and its results."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    return folder, score(folder, full_responses=True)


@pytest.fixture(scope="module")
def cut(score, tmp_path_factory: pytest.TempPathFactory):
    """The same with responses that end where their answer is decided."""
    folder = tmp_path_factory.mktemp("cut") / "out"
    return folder, score(folder)


def without_responses(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**record, "response": ""} for record in sorted(records, key=lambda r: r["index"])]


def assert_same_answers(whole: Path, cut: Path, task: str) -> int:
    """All but the responses are equal; returns how many of those were cut."""
    before, after = read_answers(whole, task), read_answers(cut, task)
    assert without_responses(after) == without_responses(before)
    texts = {record["index"]: record["response"] for record in before}
    assert all(texts[record["index"]].startswith(record["response"]) for record in after)
    return sum(texts[record["index"]] != record["response"] for record in after)


def test_scores_are_those_of_whole_responses(score, whole, cut, tmp_path):
    folder, expected = whole
    assert cut[1].scores == expected.scores
    for task in ("boolq", "AQuA"):
        assert assert_same_answers(folder, cut[0], task) > 3
        assert 0 < expected[task].correct < expected[task].scored  # the test can tell
    assert read_answers(cut[0], "gsm8k") == read_answers(folder, "gsm8k")
    assert any(score.unparsable for score in expected.scores)
    assert cut[1].settings["full_responses"] is False
    assert expected.settings["full_responses"] is True
    score(tmp_path / "one", ["boolq"], batch_size=1)
    order = {r["index"]: r for r in read_answers(cut[0], "boolq")}
    assert {r["index"]: r for r in read_answers(tmp_path / "one", "boolq")} == order


def test_the_results_say_how_many_tokens_a_response_took(whole, cut):
    tokens = cut[1].settings["tokens_per_response"]
    said = [len(r["response"].split()) for t in cut[1].scores for r in read_answers(cut[0], t.name)]
    assert sum(said) <= tokens * len(said) + 0.3 <= sum(said) + len(said) + 0.6  # end tokens
    assert tokens < whole[1].settings["tokens_per_response"]


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"protocol": "strict"}])
def test_with_beams_or_strict_rules_responses_stay_whole(score, tmp_path, options):
    for name, full in (("a", False), ("b", True)):
        results = score(tmp_path / name, ["boolq"], full_responses=full, limit=6, **options)
        assert results.settings["full_responses"] is True
    assert read_answers(tmp_path / "a", "boolq") == read_answers(tmp_path / "b", "boolq")


@pytest.fixture(scope="module")
def loaded_toy():
    return load(tiny_model_path(), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "answers", [("'s", "Gus's."), (" i", " is"), ("salt", "alt", "e"), ("x q",)]
)
def test_labels_across_the_pieces_of_a_real_tokenizer(tmp_path, answers, loaded_toy):
    """Labels that are parts of words, contain spaces, or begin like one another."""
    asked = load_examples(built_in_tasks()["tiny-choice"])[:6]
    labels = (answers[i % len(answers)] for i in range(6))
    examples = [dataclasses.replace(e, label=a) for e, a in zip(asked, labels, strict=True)]
    task = dataclasses.replace(built_in_tasks()["tiny-choice"], answers=answers, max_new_tokens=16)
    requests = [TaskRequests(task, examples, len(examples))]
    ask = partial(evaluate_with, loaded_toy.model, loaded_toy.tokenizer, requests, batch_size=4)
    whole = ask(out=tmp_path / "whole", full_responses=True)
    assert ask(out=tmp_path / "cut").scores == whole.scores
    cut = assert_same_answers(tmp_path / "whole", tmp_path / "cut", "tiny-choice")
    assert (cut > 0) == (whole.scores[0].unparsable < len(examples))


# --- folders and other protocols ---


def test_a_folder_holds_whole_responses_or_cut_ones(score, whole, cut):
    with pytest.raises(RosaError, match="its full_responses is False, now True; choose another"):
        score(cut[0], full_responses=True)
    with pytest.raises(RosaError, match="its full_responses is True, now False; choose another"):
        score(whole[0])


def test_folders_older_than_the_option_are_whole(score, tmp_path):
    expected = score(tmp_path / "old", ["boolq"], full_responses=True)
    for file in (tmp_path / "old" / "run.json", tmp_path / "old" / "results.json"):
        content = json.loads(file.read_text())
        del content.get("settings", content)["full_responses"]
        file.write_text(json.dumps(content))
    with pytest.raises(RosaError, match="its full_responses is True, now False"):
        score(tmp_path / "old", ["boolq"])
    rescored = rescore(tmp_path / "old", "strict", tmp_path / "strict")
    assert rescored.settings["full_responses"] is True
    assert score(tmp_path / "old", ["boolq"], full_responses=True).scores == expected.scores


def test_only_responses_that_were_not_cut_are_read_by_other_rules(score, whole, cut, tmp_path):
    with pytest.raises(RosaError, match=r"responses to boolq in .*end where .*llm-adapters"):
        rescore(cut[0], "strict", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    fresh = score(tmp_path / "fresh", protocol="strict")
    assert rescore(whole[0], "strict", tmp_path / "rescored").scores == fresh.scores
    # No rule cuts numbers, so their responses are whole in any case.
    score(tmp_path / "numbers", ["gsm8k"])
    numbers = rescore(tmp_path / "numbers", "strict", tmp_path / "rescored-numbers")
    assert numbers.scores == [fresh["gsm8k"]]


@given(text=st.text("ABC. ", max_size=8))
def test_the_example_of_a_rule_that_reads_on(text):
    """Why cut responses cannot be rescored: strict rules see two labels where one was left."""
    aqua = built_in_tasks()["AQuA"]
    ends = next((n for n in range(len(text) + 1) if aqua.early_stop()(text[:n])), None)
    assume(ends is not None and aqua.parse(text, "strict") is None)
    assert aqua.parse(text[:ends]) == aqua.parse(text) is not None


# --- commands ---


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a model that answers BoolQ with many words."""
    folder = tmp_path_factory.mktemp("adapter")
    model = tiny_llama(seed=6)
    model.name_or_path = str(write_model_folder(folder / "model", seed=6))
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder / "adapter")
    return folder / "adapter"


def test_the_command_cuts_by_default_and_rescoring_says_what_to_do(
    adapter, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(adapter), "--tasks", "boolq", "--data", str(data), "--limit", "6"]
    words += ["--max_new_tokens", "12"]
    assert main([*words, "--out", "cut"]) == 0
    assert main([*words, "--out", "whole", "--full_responses"]) == 0
    assert assert_same_answers(Path("whole"), Path("cut"), "boolq")
    capsys.readouterr()
    assert main(["evaluate", "cut", "--rescore", "--protocol", "strict"]) == 2
    said = capsys.readouterr().err
    assert "the responses to boolq in cut end where" in said
    assert "evaluate with --full_responses and another --out" in said
    assert said.count("\n") == 1
    rescored = ["evaluate", "whole", "--rescore", "--protocol", "strict"]
    assert main(rescored) == 0
    assert main([*rescored, "--full_responses"]) == 2
    assert "does not use --full_responses" in capsys.readouterr().err


def test_a_study_keeps_responses_whole_unless_its_grid_says_otherwise(adapter, data, tmp_path):
    for whole in (True, False):
        given = {} if whole else {"full_responses": False}
        options = dataclasses.replace(STUDY_OPTIONS, data=str(data), max_new_tokens=12, **given)
        out = tmp_path / str(whole)
        results = run_evaluation(adapter, ["boolq"], options, out=out)
        assert results.settings["full_responses"] is whole
        responses = [record["response"].split() for record in read_answers(out, "boolq")]
        assert any({"true", "false"} & set(said[:-1]) for said in responses) is whole
