"""Answer filters: what a response is taken to say, and whether that is the label.

A benchmark's YAML names one of `FILTERS`. The rules are the `llm-adapters` protocol's; a response
in which a filter finds nothing is wrong and is counted as unparsable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Protocol

TOLERANCE = 1e-3  # numbers this close are the same answer


class AnswerFilter(Protocol):
    """How one kind of benchmark is answered; `answers` are its labels, where it has a fixed set."""

    needs_answers: bool

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        """The answer that `response` gives, or None where it gives none."""

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

    def parse(self, response: str, answers: Sequence[str]) -> str | None:
        # Longest first, so that `option10` is not read as `option1`.
        pattern = "|".join(re.escape(a) for a in sorted(answers, key=len, reverse=True))
        match = re.search(pattern, response)
        return match.group() if match else None

    def is_label(self, label: str, answers: Sequence[str]) -> bool:
        return label in answers

    def equal(self, answer: str, label: str) -> bool:
        return answer == label


class LastNumber:
    """The last number in the text decides, commas removed, within `TOLERANCE` of the label.

    A hyphen right before a digit is read as a minus sign, as the published suite does.

    >>> LastNumber().parse("3 boxes of 400 make 1,200. The answer is 1,200.", [])
    '1200.'
    """

    needs_answers = False

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


def _number(text: str) -> float:
    return float(text.replace(",", ""))


FILTERS: dict[str, AnswerFilter] = {"first_label": FirstLabel(), "last_number": LastNumber()}
