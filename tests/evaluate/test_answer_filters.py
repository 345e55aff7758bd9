"""The answer filters against the protocol's rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.evaluate.answer_filters import FILTERS, PROTOCOLS, TOLERANCE
from rosa.evaluate.tasks import built_in_tasks

# One task for each set of labels.
LABELLED = list({t.answers: t for t in built_in_tasks().values() if t.answers}.values())
# Text in which no label can hide: no digits, no capital A-E, no `true` or `false`.
plain_text = st.text(alphabet=" .,;!?\nxyzXYZ()", max_size=30)
first_label, last_number = FILTERS["first_label"], FILTERS["last_number"]


@given(data=st.data(), task=st.sampled_from(LABELLED))
def test_the_first_label_decides(task, data):
    first, second = (
        data.draw(st.sampled_from(task.answers)),
        data.draw(st.sampled_from(task.answers)),
    )
    before, between, after = (data.draw(plain_text) for _ in range(3))
    assert task.parse(f"{before}{first}{between}{second}{after}") == first


@given(data=st.data(), task=st.sampled_from(LABELLED))
def test_no_label_precedes_the_one_that_decides(task, data):
    """Against a search that knows no regular expressions, in text made of pieces of labels."""
    pieces = [*task.answers, *(a[:-1] for a in task.answers), " ", "x", "A", "1", "é"]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=8)))
    places = {text.find(answer): answer for answer in task.answers if answer in text}
    assert task.parse(text) == (places[min(places)] if places else None)


@given(text=plain_text, task=st.sampled_from(LABELLED))
def test_text_without_a_label_gives_no_answer(task, text):
    assert task.parse(text) is None
    assert not task.is_correct(None, task.answers[0])


def test_labels_are_case_sensitive():
    for task in LABELLED:
        assert all(task.parse(answer.swapcase()) is None for answer in task.answers)


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        ("boolq", {"true", "false"}),
        ("piqa", {"solution1", "solution2"}),
        ("social_i_qa", {f"answer{i}" for i in range(1, 6)}),
        ("hellaswag", {f"ending{i}" for i in range(1, 5)}),
        ("winogrande", {"option1", "option2"}),
        ("AQuA", set("ABCDE")),
    ],
)
def test_labels_are_those_of_the_protocol(task, answers):
    assert set(built_in_tasks()[task].answers) == answers


def test_aqua_takes_the_first_capital_letter_even_inside_a_word():
    aqua = built_in_tasks()["AQuA"]
    assert aqua.parse("so the answer is (B), not (A)") == "B"
    assert aqua.parse("Dividing gives (C)") == "D"
    assert aqua.parse("the answer is b") is None


def test_a_label_that_begins_like_another_is_read_whole():
    assert first_label.parse("option10", ["option1", "option10"]) == "option10"


@given(numbers=st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=4))
def test_the_last_number_decides_with_and_without_commas(numbers):
    for form in ("{}", "{:,}"):
        text = " then ".join(form.format(n) for n in numbers) + " apples."
        assert last_number.equal(last_number.parse(text, []), str(numbers[-1]))


@given(label=st.integers(-(10**6), 10**6), off=st.floats(-0.01, 0.01))
def test_numbers_within_the_tolerance_are_equal(label, off):
    answer = f"{label + off:.6f}"
    far = abs(float(answer) - label)
    if abs(far - TOLERANCE) > 1e-9:  # the border itself is a matter of rounding
        assert last_number.equal(answer, str(label)) == (far <= TOLERANCE)


# Any characters; hypothesis' own need seconds for its table of all of them.
characters = st.integers(32, 0x2FFF).map(chr)


@given(text=st.lists(characters, max_size=40).map("".join))
def test_text_without_digits_gives_no_number(text):
    assert last_number.parse(re.sub("[0-9]", "x", text), []) is None


def scanned_numbers(text):
    """The rule of the suite, one character at a time: sign, digits, a dot, digits."""
    text, numbers, i = text.replace(",", ""), [], 0
    digits = "0123456789"
    while i < len(text):
        start = i
        i += text[i] == "-"
        whole = i
        while i < len(text) and text[i] in digits:
            i += 1
        if i == whole:
            i = start + 1
            continue
        if i < len(text) and text[i] == ".":
            i += 1
            while i < len(text) and text[i] in digits:
                i += 1
        numbers.append(text[start:i])
    return numbers


number_like = st.text(alphabet="0123456789.,-+$%()=/ e٣½−x\n", max_size=25)


@given(text=st.one_of(number_like, st.lists(characters, max_size=40).map("".join)))
def test_the_last_number_is_that_of_a_plain_scan(text):
    found = scanned_numbers(text)
    assert last_number.parse(text, []) == (found[-1] if found else None)


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("1,234.50", 1234.5),
        ("$3.00.", 3.0),
        ("It costs $1,234.50.", 1234.5),
        ("-7", -7.0),
        ("from 10 to -2.5.", -2.5),
        ("5-3", -3.0),  # the published rule
        ("3, 4", 4.0),
        ("(3,4)", 34.0),  # the published rule
        (".5", 5.0),  # the published rule
        ("12 ٣ ½", 12.0),
        ("٣", None),
        ("1" * 400, float("inf")),
        ("", None),
    ],
)
def test_numbers_as_the_published_rule_reads_them(response, number):
    parsed = last_number.parse(response, [])
    assert (parsed if parsed is None else float(parsed)) == number


# What statements, labels and their neighbors are made of.
PIECES = ["the answer is ", "Answer: ", "####", "\\boxed{", "option ", "not ", "A", "B", "C)"]
PIECES += ["answer1", "true", "false", "ending2", "5", "1,000", ".", "=", "-", "\n", " ", "**"]
any_text = st.one_of(
    st.lists(characters, max_size=60).map("".join),
    number_like,
    st.lists(st.sampled_from(PIECES), max_size=10).map("".join),
)
RULES = [*LABELLED, built_in_tasks()["gsm8k"]]


@given(
    text=any_text,
    label=st.integers(-1000, 1000),
    space=st.text(alphabet=" \t\n\r\u00a0", max_size=4),
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_response_can_break_a_filter(text, label, space, protocol):
    """Whatever it is; space at its end changes no answer, and an answer gives itself."""
    for task in RULES:
        answer = task.parse(text, protocol)
        verdict = task.is_correct(answer, task.answers[0] if task.answers else str(label))
        assert isinstance(verdict, bool)
        assert verdict is False or answer is not None
        if task.answers:
            assert answer is None or answer in task.answers
        assert task.parse(text + space, protocol) == answer
        if answer is not None:
            assert task.is_correct(task.parse(answer, protocol), answer)


@pytest.mark.parametrize(
    ("response", "label", "correct"),
    [
        ("A: 24 * 24 = 576 tiles. The answer is 576.", "576.0", True),
        ("The answer is $1,200", "1200", True),
        ("it is 9.8 gallons", "9.8", True),
        ("it is 9.801", "9.8", True),
        ("it is 9.802", "9.8", False),
        ("7 of 8", "7", False),
        ("minus -5", "-5.0", True),
        ("none", "0", False),
    ],
)
def test_numbers_by_hand(response, label, correct):
    gsm8k = built_in_tasks()["gsm8k"]
    assert gsm8k.is_correct(gsm8k.parse(response), label) is correct


@pytest.mark.parametrize("label", ["", "five", "nan", "inf", "1/2"])
def test_labels_that_are_no_number_are_unknown(label):
    assert not last_number.is_label(label, [])
