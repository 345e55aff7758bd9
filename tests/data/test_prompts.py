"""Prompts, byte for byte: every benchmark's, and those with worked examples or a chat template.

The golden files are tests/fixtures/prompts/*.txt. After an intended change, rewrite them and
read the difference:

    python -m tests.data.test_prompts && git diff tests/fixtures/prompts
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import pytest

from rosa.data.prompts import Question, Shot, chat_turns, instruction_prompt, render
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError
from rosa.evaluate.examples import load_examples, suite_rows
from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.requests import build_requests
from rosa.evaluate.tasks import built_in_tasks
from tests.support.tiny_folder import word_tokenizer

GOLDEN = Path(__file__).parents[1] / "fixtures" / "prompts"
FOUR = {"text": ["a kettle", "a spoon", "a sieve", "a cup"], "label": ["A", "B", "C", "D"]}
# One row per benchmark, made up for this test: in the hub data set's own fields where there is one.
ROWS = {
    "boolq": {"question": "do cats have whiskers", "answer": True},
    "piqa": {
        **{"goal": "To dry a wet shoe,", "label": 1},
        **{"sol1": "fill it with water.", "sol2": "stuff it with newspaper."},
    },
    "social_i_qa": {
        **{"context": "Mara lent Jo her umbrella.", "question": "How would you describe Mara?"},
        **{"answerA": "kind", "answerB": "angry", "answerC": "late", "label": "1\n"},
    },
    "ARC-Challenge": {
        **{"question": "Which tool separates sand from gravel?", "answerKey": "3"},
        "choices": {"text": ["a lamp", "a rope", "a sieve"], "label": ["1", "2", "3"]},
    },
    "ARC-Easy": {"question": "Which one boils water?", "answerKey": "A", "choices": FOUR},
    "openbookqa": {"question_stem": "Tea is drunk from", "answerKey": "D", "choices": FOUR},
    "hellaswag": {
        **{"activity_label": "Washing up", "ctx": "A woman fills the sink. she", "label": "2"},
        "endings": ["flies off.", "sings to a fish.", "takes a plate.", "paints the moon."],
    },
    "winogrande": {
        **{"sentence": "The box did not fit the shelf as the _ was too small.", "answer": "2"},
        **{"option1": "box", "option2": "shelf"},
    },
    "MultiArith": {"question": "Ida had 3 bags of 4 nuts. How many nuts?", "final_ans": "12"},
    "gsm8k": {"question": "Ken runs 2 km on each of 5 days. How far?", "answer": "2*5=10\n#### 10"},
    "AQuA": {
        **{"question": "What is 10% of 60?", "correct": "B"},
        "options": ["A)5", "B)6", "C)7", "D)8", "E)9"],
    },
    "SVAMP": {"Body": "Lou has 9 pens.", "Question": "How many if 2 are lost?", "Answer": "7.0"},
    # No hub data set: in the suite's own fields.
    "AddSub": {"instruction": "Ria had 5 figs . She ate 2 . How many are left ? ", "answer": "3.0"},
    "SingleEq": {"instruction": "Max paid 12 dollars for 4 pies. How much is one?", "answer": "3"},
    "mawps": {"instruction": "There are 7 rows of 8 chairs. How many chairs?", "answer": "56.0"},
}
SHOTS = (
    Shot(Question("Is 2 even?"), "the correct answer is true"),
    Shot(Question("Is it so?", "3 is even."), "the correct answer is false\n"),
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tokenizer:
    """As much of a tokenizer as a chat template needs."""

    chat_template = CHATML

    def apply_chat_template(self, turns, tokenize, add_generation_prompt):
        from jinja2 import Template

        assert tokenize is False
        # As Transformers sets it up: block tags take no line of their own.
        template = Template(CHATML, trim_blocks=True, lstrip_blocks=True)
        return template.render(messages=turns, add_generation_prompt=add_generation_prompt)


def prompt_of(name):
    """The prompt that an evaluation makes of the row: through the file, as a user's data."""
    task = built_in_tasks()[name]
    rows = suite_rows(task.hub, [ROWS[name]], "here") if task.hub else [ROWS[name]]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / task.file
        file.parent.mkdir()
        file.write_text(json.dumps(rows), encoding="utf-8")
        (work,) = build_requests([name], EvaluationOptions(data=folder))
    return work.rendered(None).examples[0].prompt


@cache
def golden():
    """The content of every golden file by its name."""
    question = Question("Do cats have whiskers?")
    return {
        **{name: prompt_of(name) for name in ROWS},
        "few-shot-alpaca": render("alpaca", question, SHOTS),
        "few-shot-plain": render("plain", question, SHOTS),
        "chat": render("chat", question, (), Tokenizer()),
        "few-shot-chat": render("chat", question, SHOTS, Tokenizer()),
    }


@pytest.mark.parametrize("name", golden())
def test_the_prompt_is_the_golden_file_byte_for_byte(name):
    assert golden()[name].encode() == (GOLDEN / f"{name}.txt").read_bytes()


def test_every_benchmark_has_its_file_and_no_file_is_left_over():
    assert set(ROWS) == {t.name for t in built_in_tasks().values() if t.suite != "toy"}
    assert {file.stem for file in GOLDEN.iterdir()} == set(golden())


def test_training_and_evaluation_put_a_question_in_the_same_words():
    question = Question("Is it?", "Here.")
    assert render("alpaca", question) == instruction_prompt("Is it?", "Here.")


def test_an_input_is_part_of_the_users_turn():
    turns = chat_turns(Question(" Is it? ", "Here."), SHOTS)
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[3]["content"] == "the correct answer is false"
    assert turns[4]["content"] == "Is it?\n\nHere."


def test_a_tokenizer_without_a_chat_template_is_one_sentence():
    with pytest.raises(RosaError, match="tokenizer has no chat template, so --prompt chat cannot"):
        render("chat", Question("Is it?"), (), word_tokenizer())


def test_a_template_that_raises_is_reported_in_one_sentence():
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('Roles must\nalternate') }}"
    with pytest.raises(RosaError, match=r"cannot render 1 turns: Roles must alternate"):
        render("chat", Question("Is it?"), (), tokenizer)


def test_a_template_is_not_given_a_second_beginning_token():
    tokenizer = word_tokenizer()
    tokenizer.add_bos_token = True
    tokenizer.chat_template = "<s> {{ messages[0]['content'] }}"
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    text = render("chat", Question("How many"), (), tokenizer)
    assert encode_prompts(tokenizer, ["How many"])[0][0] == 1
    assert encode_prompts(tokenizer, [text], add_special_tokens=False)[0].count(1) == 1
    assert encode_prompts(tokenizer, [text])[0].count(1) == 2  # what it would be


def test_a_chat_example_holds_the_users_turn_until_a_tokenizer_is_there(tmp_path):
    (tmp_path / "boolq").mkdir()
    row = {"instruction": "Is it?", "input": "Here.", "answer": "true"}
    (tmp_path / "boolq" / "test.json").write_text(json.dumps([row]))
    (work,) = build_requests(["boolq"], EvaluationOptions(data=tmp_path, prompt="chat"))
    assert work.examples[0].prompt == "Is it?\n\nHere."
    (example,) = work.rendered(Tokenizer()).examples
    assert example.prompt.endswith("Here.<|im_end|>\n<|im_start|>assistant\n")
    (plain,) = load_examples(built_in_tasks()["boolq"], tmp_path)
    assert example.question == plain.question


if __name__ == "__main__":
    for name, text in golden().items():
        (GOLDEN / f"{name}.txt").write_bytes(text.encode())
