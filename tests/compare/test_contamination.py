"""Test questions in the training data: found in the data, and nothing but the data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.compare.contamination import (
    OVERLAP,
    Overlap,
    count_overlap,
    load_overlap,
    normalize_question,
    row_questions,
    strip_template,
    write_overlap,
)
from rosa.compare.grid import TrainingSet
from rosa.data.prompts import Question, instruction_prompt
from rosa.data.sources import load_training_rows
from rosa.errors import RosaError
from rosa.evaluate.examples import Example, load_examples
from tests.support.compare import make_grid
from tests.support.evaluation import load_task

MATH = ("MultiArith", "AddSub", "SingleEq", "gsm8k", "AQuA")
text = st.text(st.characters(exclude_characters="\0\1"), max_size=40)


def ask(*instructions: str) -> list[Example]:
    return [Example(i, "", "1", Question(text)) for i, text in enumerate(instructions)]


def test_white_space_and_case_are_forgiven_and_nothing_else():
    rows = [{"instruction": " Sam has 3 books .\n How many?", "input": "", "output": "3"}]
    found = count_overlap(rows, ask("sam has 3 books. How many?", "Sam has 3 books. How many"))
    assert found == Overlap(matches=1, of=2)


def test_a_question_counts_as_often_as_the_test_asks_it():
    rows = [{"instruction": "a"}] * 5
    assert count_overlap(rows, ask("a", "A", "b")) == Overlap(2, 3)
    assert count_overlap([], ask("a")) == Overlap(0, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Say Hi", "input": "to Ann", "output": "Hi"},
        {"instruction": "Say Hi to Ann", "input": "", "output": "Hi"},
        {"instruction": "Say Hi to Ann", "output": "Hi"},
        {"prompt": "Say Hi to Ann", "completion": "Hi"},
        {"prompt": instruction_prompt("Say Hi", "to Ann"), "completion": "Hi"},
        {"messages": [{"role": "user", "content": "Say Hi to Ann"}]},
    ],
)
def test_every_form_of_training_rows_is_read(row):
    examples = [Example(0, "", "Hi", Question("say hi", "to ann")), *ask("Say hi to Ann")]
    assert count_overlap([row], examples) == Overlap(2, 2)


def test_rows_that_ask_nothing_match_nothing():
    rows = [{}, {"messages": "x"}, {"messages": [{"role": "user"}]}, {"prompt": " "}]
    assert [row_questions(row) for row in rows] == [[], [], [], []]
    assert count_overlap(rows, ask("", "  ")).matches == 0


@given(text, text)
def test_the_template_comes_off_again(instruction, context):
    inside = normalize_question(strip_template(instruction_prompt(instruction, context)))
    assert inside == normalize_question(f"{instruction} {context}")


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (
            "math_standin",
            {"MultiArith": 141, "AddSub": 124, "SingleEq": 129, "gsm8k": 0, "AQuA": 0},
        ),
        ("gsm8k_train_llm_adapters_format", dict.fromkeys(MATH, 0)),
    ],
)
def test_real_data(shared_data: Path, training: str, expected: dict[str, int]) -> None:
    """Counted independently: a set of instructions stripped of white space and lowered."""
    rows = load_training_rows(str(shared_data / "train" / f"{training}.json"))
    for task in MATH:
        found = count_overlap(rows, load_examples(load_task(task), shared_data / "test"))
        assert found == Overlap(expected[task], load_task(task).size), task


def test_the_toy_tasks_tests_are_not_in_their_training_rows():
    for task in ("tiny-sums", "tiny-choice"):
        examples = load_examples(load_task(task))
        assert count_overlap(load_training_rows(task), examples) == Overlap(0, 250)


def test_a_study_is_checked_on_its_own_data(tmp_path: Path) -> None:
    asked = load_examples(load_task("tiny-sums"))[:7]
    rows = [{"prompt": e.prompt, "completion": "1"} for e in asked]
    (tmp_path / "leak.json").write_text(json.dumps(rows))
    sets = {
        "leaking": TrainingSet(str(tmp_path / "leak.json"), ["tiny-sums", "tiny-choice"]),
        "clean": TrainingSet("tiny-sums", ["tiny-sums"]),
    }
    grid = make_grid(output_dir=str(tmp_path), training_sets=sets)
    assert load_overlap(tmp_path) is None
    found = write_overlap(grid)
    assert found == {
        "leaking": {
            "tiny-sums": {"matches": 7, "of": 250},
            "tiny-choice": {"matches": 0, "of": 250},
        },
        "clean": {"tiny-sums": {"matches": 0, "of": 250}},
    }
    assert load_overlap(tmp_path) == found


def test_data_that_is_gone_is_an_error_and_no_clean_bill(tmp_path: Path) -> None:
    sets = {"gone": TrainingSet("gone.json", ["tiny-sums"])}
    grid = make_grid(output_dir=str(tmp_path), training_sets=sets)
    with pytest.raises(RosaError, match="there is no data file"):
        write_overlap(grid)
    assert load_overlap(tmp_path) is None
    (tmp_path / OVERLAP).write_text("{")
    with pytest.raises(RosaError, match="delete it"):
        load_overlap(tmp_path)
