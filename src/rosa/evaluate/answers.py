"""Answer filters: what a response is taken to say, and whether that is the label.

A benchmark's YAML names one of `FILTERS`, which follow the rules of the `llm-adapters` protocol;
`PROTOCOLS` has the `strict` protocol's counterpart of each. A response in which a filter finds
nothing is wrong and is counted as unparsable.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Protocol

TOLERANCE = 1e-3  # numbers this close are the same answer
PUBLISHED = "llm-adapters"

# Where a response says what its answer is: "the answer is", "the correct option is", "Answer:",
# GSM8K's "####", LaTeX's "\boxed{".
_STATEMENT = (
    r"(?:(?i:\banswers?\b[*_\s]*[:=]|\b(?:answer|option|choice)s?\b[^.\n:=]{0,40}?\bis\b)"
    r"|####|\\boxed\{)"
)
_OPENING = r"""[\s*_:=$`"'(\[{]*"""  # marks between a statement and its answer
_ARTICLE = r"A +(?!(?:or|and|is)\b)[a-z]"  # "A train", but not "A or B"
_SENTENCE = 200  # characters of a statement that count, where no full stop comes before


class AnswerFilter(Protocol):
    """How one kind of benchmark is answered; `answers` are its labels, where it has a fixed set."""

    needs_answers: bool
    decides_early: bool  # whether `decided` is ever true

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        """The answer that `response` gives, or None where it gives none."""

    def decided(self, response: str, answers: Sequence[str]) -> bool:
        """Whether `parse` finds the same in every text that begins with `response`."""

    def is_label(self, label: str, answers: Sequence[str]) -> bool:
        """Whether `label` is one that a response can match."""

    def equal(self, answer: str, label: str) -> bool:
        """Whether a parsed answer is the label."""


class FirstLabel:
    """The first label that occurs in the text, case-sensitive, decides.

    >>> FirstLabel().parse("the correct answer is answer3, not answer1", ["answer1", "answer3"])
    'answer3'
    """

    needs_answers = True
    decides_early = True

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        match = re.search(_any_of(answers), response)
        return match.group() if match else None

    def decided(self, response: str, answers: Sequence[str]) -> bool:
        match = re.search(_any_of(answers), response)
        if match is None:
            return False
        # What would win over the match: a label that has begun before it, or a longer one with it.
        first = max(0, len(response) - max(map(len, answers)))
        begun = [response[i:] for i in range(first, match.start() + 1)]
        return not any(a.startswith(text) and a != text for a in answers for text in begun)

    def is_label(self, label: str, answers: Sequence[str]) -> bool:
        return label in answers

    def equal(self, answer: str, label: str) -> bool:
        return answer == label


class OnlyLabel(FirstLabel):
    """The one label that the text names, case-sensitive and as a whole word.

    Where the text states its answer ("the answer is", "Answer:", ...), the stated labels alone
    count. Two different labels are no answer. The article "A" is no label.

    >>> OnlyLabel().parse("A train goes 5 miles. Answer: C", ["A", "B", "C"])
    'C'
    >>> OnlyLabel().parse("either answer1 or answer3", ["answer1", "answer3"]) is None
    True
    """

    decides_early = False

    def decided(self, response: str, answers: Sequence[str]) -> bool:
        return False  # another label may come, or a statement

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        option = rf"(?:(?i:option|choice)\b{_OPENING})?"
        stated = rf"{_STATEMENT}{_OPENING}{option}({_any_of(answers)})(?!\w)"
        named = rf"(?<!\w)(?!{_ARTICLE})({_any_of(answers)})(?!\w)"
        found = set(re.findall(stated, response)) or set(re.findall(named, response))
        return found.pop() if len(found) == 1 else None


class LastNumber:
    """The last number in the text decides, commas removed, within `TOLERANCE` of the label.

    A hyphen right before a digit is read as a minus sign, as the published suite does.

    >>> LastNumber().parse("3 boxes of 400 make 1,200. The answer is 1,200.", [])
    '1200.'
    """

    needs_answers = False
    decides_early = False

    def decided(self, response: str, answers: Sequence[str]) -> bool:
        return False

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        numbers = re.findall(r"-?[0-9]+\.?[0-9]*", response.replace(",", ""))
        return numbers[-1] if numbers else None

    def is_label(self, label: str, answers: Sequence[str]) -> bool:
        try:
            return math.isfinite(_number(label))
        except ValueError:
            return False

    def equal(self, answer: str, label: str) -> bool:
        return abs(_number(answer) - _number(label)) <= TOLERANCE


class StatedNumber(LastNumber):
    """The number that the text's last statement of its answer gives, else the last number.

    Of a statement, its sentence counts: the number after its last "=", else its first number. A
    number is written as people write it: a comma only before three digits, a minus sign only where
    no digit, letter or bracket stands before it.

    >>> StatedNumber().parse("The answer is 5 - 3 = $2.00. I checked it 3 times.", [])
    '2.00'
    """

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        for statement in reversed(list(re.finditer(_STATEMENT + _OPENING, response))):
            rest = response[statement.end() : statement.end() + _SENTENCE]
            sentence = re.split(r"[.!?](?!\S)|\n", rest, maxsplit=1)[0]
            result = _written_numbers(sentence.rpartition("=")[2])
            numbers = result or _written_numbers(sentence)
            if numbers:
                return numbers[0]
        numbers = _written_numbers(response)
        return numbers[-1] if numbers else None


def _written_numbers(text: str) -> list[str]:
    """Every number in `text`, without commas and currency signs."""
    minus = r"(?<![\w)\]}.])[-−][$€£]?"
    digits = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
    found = re.findall(rf"({minus})?(?<![A-Za-z_])({digits})", text)
    return [("-" if sign else "") + number.replace(",", "") for sign, number in found]


def _any_of(answers: Sequence[str]) -> str:
    return _alternatives(tuple(answers))


@functools.cache  # asked after every token
def _alternatives(answers: tuple[str, ...]) -> str:
    # Longest first, so that `option10` is not read as `option1`.
    return "|".join(re.escape(a) for a in sorted(answers, key=len, reverse=True))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


FILTERS: dict[str, AnswerFilter] = {"first_label": FirstLabel(), "last_number": LastNumber()}
PROTOCOLS: dict[str, dict[str, AnswerFilter]] = {
    PUBLISHED: FILTERS,
    "strict": {"first_label": OnlyLabel(), "last_number": StatedNumber()},
}
