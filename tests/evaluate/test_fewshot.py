"""Worked examples: which rows they are, that none is a test row, and what the run says of them."""

from __future__ import annotations

import json

import pytest

from rosa.data.prompts import NEXT_EXAMPLE
from rosa.errors import RosaError
from rosa.evaluate.fewshot import draw_shots, training_file
from rosa.evaluate.generation import generate
from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.requests import build_requests, prompt_settings, request_notes
from tests.support.evaluation import evaluate_with, load_task
from tests.support.tiny_folder import tiny_llama, word_tokenizer

TRAIN = [
    {"instruction": f"How many has {i}", "input": "", "output": f"answer is {i}", "answer": str(i)}
    for i in range(12)
]
TEST = [{"instruction": f"how  many has {i}", "answer": str(i)} for i in (3, 4, 40, 41, 42)]


@pytest.fixture
def data(tmp_path):
    """gsm8k's folder; the first two questions are training rows in other spacing and case."""
    write(tmp_path / "gsm8k" / "test.json", TEST)
    write(tmp_path / "gsm8k" / "train.json", TRAIN)
    return tmp_path


def write(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows))
    return file


def requests_of(**options):
    (requests,) = build_requests(["gsm8k"], EvaluationOptions(**options))
    return requests


def shots_of(**options):
    return requests_of(**options).shots


def test_the_draw_is_seeded_and_the_same_for_every_question(data):
    work = requests_of(data=data, num_fewshot=3)
    assert shots_of(data=data, num_fewshot=3) == work.shots
    assert shots_of(data=data, num_fewshot=3, limit=2) == work.shots
    assert len(set(work.shots)) == 3
    draws = {shots_of(data=data, num_fewshot=3, seed=seed) for seed in range(5)}
    assert len(draws) == 5
    (before,) = {e.prompt.rpartition("Below is")[0] for e in work.rendered(None).examples}
    for shot in work.shots:
        assert f"{shot.question.instruction}\n\n### Response:\n{shot.response}\n\n" in before


def test_no_example_is_a_row_of_the_test_set_not_even_of_those_not_asked(data):
    shots = shots_of(data=data, num_fewshot=10, limit=1)
    assert {s.question.instruction for s in shots} == {
        f"How many has {i}" for i in range(12) if i not in (3, 4)
    }
    with pytest.raises(
        RosaError, match=r"has 10 worked examples for gsm8k.*is 11.*2 of those are in"
    ):
        shots_of(data=data, num_fewshot=11)


def test_only_rows_that_are_labeled_as_the_task_are_drawn(tmp_path):
    answers = ["true", "answer1", "false", "ending2", "7", None, True]
    rows = [
        {"instruction": f"q{i}", "output": f"it is {a}", "answer": a} for i, a in enumerate(answers)
    ]
    file = write(tmp_path / "mixed.json", rows)
    drawn = {
        name: [s.response for s in draw_shots(load_task(name), [], count, file)]
        for name, count in (("boolq", 2), ("piqa", 0), ("hellaswag", 1), ("gsm8k", 1))
    }
    assert sorted(drawn.pop("boolq")) == ["it is false", "it is true"]
    assert drawn == {"piqa": [], "hellaswag": ["it is ending2"], "gsm8k": ["it is 7"]}
    with pytest.raises(RosaError, match=r"has 0 worked examples for piqa.*of its 7 rows 0 have"):
        draw_shots(load_task("piqa"), [], 1, file)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"instruction": "q", "answer": "1"}, "row 1: the field 'output' is missing"),
        ({"instruction": "q", "answer": "1", "output": " "}, "row 1: the response is empty"),
        ({"output": "1", "answer": "1"}, "row 1: the field 'instruction' is missing"),
    ],
)
def test_a_bad_training_row_is_named(tmp_path, row, complaint):
    file = write(tmp_path / "train.json", [row])
    with pytest.raises(RosaError, match=complaint) as caught:
        draw_shots(load_task("gsm8k"), [], 1, file)
    assert "train.json" in str(caught.value)


def test_rows_come_from_the_file_that_was_named_else_from_next_to_the_test_set(data, tmp_path):
    assert training_file(load_task("gsm8k"), None, data) == data / "gsm8k" / "train.json"
    assert training_file(load_task("tiny-sums"), None, None).is_file()
    own = write(tmp_path / "own.json", TRAIN[:1])
    (shot,) = shots_of(data=data, num_fewshot=1, fewshot_data=own)
    assert shot.response == "answer is 0"
    with pytest.raises(
        RosaError, match=r"no train\.json next to the test set of boolq.*fewshot_data"
    ):
        training_file(load_task("boolq"), None, data)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"num_fewshot": -1}, "num_fewshot must be at least 0"),
        ({"prompt": "alpacca"}, "unknown prompt 'alpacca'; choose from alpaca, plain, chat"),
    ],
)
def test_bad_options_raise(data, bad, complaint):
    with pytest.raises(RosaError, match=complaint):
        requests_of(data=data, **bad)


@pytest.fixture(scope="module")
def tiny():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    )
    return tiny_llama(), tokenizer


def run(tiny, data, out=None, **options):
    options = {"data": data, "max_new_tokens": 4, "batch_size": 4, **options}
    return evaluate_with(*tiny, ["gsm8k"], out=out, **options)


def test_the_run_asks_with_examples_and_says_so(tiny, data, tmp_path):
    results = run(tiny, data, tmp_path / "out", num_fewshot=2, seed=1)
    first = json.loads((tmp_path / "out" / "gsm8k.jsonl").read_text().splitlines()[0])
    assert first["prompt"].count("### Response:") == 3
    assert results.settings["num_fewshot"] == 2
    note = f"2 worked examples precede each question, drawn with seed 1 from {data}"
    assert any(line.startswith(note) for line in results.footnotes())
    assert "rules of the protocol llm-adapters" in results.markdown()


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"num_fewshot": 2}, "its num_fewshot is None, now 2"),
        ({"prompt": "chat"}, "its prompt is None, now 'chat'"),
        ({"prompt": "plain"}, "other questions of the task gsm8k"),
        ({"protocol": "strict"}, "its protocol is 'llm-adapters', now 'strict'"),
    ],
)
def test_another_way_of_asking_or_reading_is_another_run(tiny, data, tmp_path, other, complaint):
    run(tiny, data, tmp_path / "out")
    with pytest.raises(RosaError, match=complaint):
        run(tiny, data, tmp_path / "out", **other)


def test_the_seed_of_the_examples_is_part_of_the_run(tiny, data, tmp_path):
    run(tiny, data, tmp_path / "out", num_fewshot=2)
    with pytest.raises(RosaError, match="its seed is 0, now 1"):
        run(tiny, data, tmp_path / "out", num_fewshot=2, seed=1)


def test_a_chat_run_asks_in_the_template_and_says_so(tiny, data, tmp_path):
    results = run(tiny, data, tmp_path / "out", prompt="chat", num_fewshot=1)
    first = json.loads((tmp_path / "out" / "gsm8k.jsonl").read_text().splitlines()[0])
    assert first["prompt"].startswith("user How many has")
    assert "assistant answer is" in first["prompt"]
    assert "### Response" not in first["prompt"]
    assert results.settings["prompt"] == "chat"
    assert "The questions are in the model's chat template." in results.footnotes()


def test_published_settings_leave_no_trace_in_the_identity(data):
    work = [requests_of(data=data)]
    assert prompt_settings(work) == {}
    assert request_notes(EvaluationOptions(), work) == [
        "Answers are read by the rules of the protocol llm-adapters."
    ]


def test_a_response_ends_where_the_model_begins_another_example(tiny):
    """Generation is cut at the text, and each row of a batch for itself."""
    model, tokenizer = tiny
    prompts = [tokenizer(f"How many has {i} question")["input_ids"] for i in range(6)]
    whole = generate(model, tokenizer, prompts, max_new_tokens=16)
    word = whole[0].text.split()[5]
    cut = generate(model, tokenizer, prompts, max_new_tokens=16, until=word)
    for before, after in zip(whole, cut, strict=True):
        assert after.text == before.text.split(word)[0].strip()
    assert cut[0].text != whole[0].text
    (alone,) = generate(model, tokenizer, prompts[:1], max_new_tokens=16, until=word)
    assert alone.text == cut[0].text
    assert alone.tokens < whole[0].tokens  # nothing was generated for the bin
    beams = {"max_new_tokens": 16, "num_beams": 2}
    (whole_beam,) = generate(model, tokenizer, prompts[:1], **beams)
    (cut_beam,) = generate(model, tokenizer, prompts[:1], **beams, until="nowhere")
    assert cut_beam == whole_beam


def test_what_ends_a_response_is_how_the_next_example_begins(data):
    for style in ("alpaca", "plain"):
        work = requests_of(data=data, prompt=style, num_fewshot=1)
        (shot,) = work.shots
        prompt = work.rendered(None).examples[0].prompt
        after = prompt.partition(shot.response)[2]
        assert after.lstrip("\n" if style == "alpaca" else "").startswith(NEXT_EXAMPLE[style])
