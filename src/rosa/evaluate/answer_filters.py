"""Answer filters: the answer that a response gives, and whether it equals the label.

A task's YAML names one of `FILTERS`, which follow the `llm-adapters` protocol; `PROTOCOLS` holds
the `strict` counterpart of each. A response without an answer is wrong and counts as unparsable.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TOLERANCE = 1e-3  # numbers this close are the same answer
PUBLISHED = "llm-adapters"

# Where a response states its answer: "the answer is", "the correct option is", "Answer:", GSM8K's
# "####", LaTeX's "\boxed{".
_STATEMENT = (
    r"(?:(?i:\banswers?\b[*_\s]*[:=]|\b(?:answer|option|choice)s?\b[^.\n:=]{0,40}?\bis\b)"
    r"|####|\\boxed\{)"
)
_OPENING = r"""[\s*_:=$`"'(\[{]*"""  # marks between a statement and its answer
_ARTICLE = r"A +(?!(?:or|and|is)\b)[a-z]"  # "A train", but not "A or B"
# LaTeX's \frac{1}{2}, \dfrac{-1}{2} or \frac12, with the whole part of a mixed number.
_LATEX_FRACTION = r"(?:(\d+)\s*)?\\[dt]?frac\s*(\{\s*-?\d+\s*\}|\d)\s*(\{\s*-?\d+\s*\}|\d)"
_SENTENCE = 200  # characters of a statement that count, where no full stop comes before


@dataclass(frozen=True)
class AnswerFilter:
    """How the responses to one kind of task are read; answers are the task's labels or `numeric`.

    `parse(response, labels)` is the answer in a response or None. `decided(response, labels)` says
    whether `parse` returns the same for every text that begins with the response; it is None where
    only a complete response decides.
    """

    parse: Callable[[str, Sequence[str]], str | None]
    numeric: bool = False
    decided: Callable[[str, Sequence[str]], bool] | None = None

    def is_label(self, label: str, labels: Sequence[str]) -> bool:
        """Whether a response can match `label`."""
        if not self.numeric:
            return label in labels
        try:
            return math.isfinite(_number(label))
        except ValueError:
            return False

    def equal(self, answer: str, label: str) -> bool:
        """Whether a parsed answer is the label."""
        if not self.numeric:
            return answer == label
        return abs(_number(answer) - _number(label)) <= TOLERANCE


def first_label(response: str, labels: Sequence[str]) -> str | None:
    """The first label that occurs in the text, case-sensitive.

    >>> first_label("the correct answer is answer3, not answer1", ["answer1", "answer3"])
    'answer3'
    """
    match = re.search(_any_of(tuple(labels)), response)
    return match.group() if match else None


def first_label_decided(response: str, labels: Sequence[str]) -> bool:
    """Whether no continuation of `response` changes its first label."""
    match = re.search(_any_of(tuple(labels)), response)
    if match is None:
        return False
    # What would win over the match: a label that has begun before it, or a longer one with it.
    first = max(0, len(response) - max(map(len, labels)))
    begun = [response[i:] for i in range(first, match.start() + 1)]
    return not any(a.startswith(text) and a != text for a in labels for text in begun)


def only_label(response: str, labels: Sequence[str]) -> str | None:
    """The one label that the text names, case-sensitive and as a whole word.

    Where the text states its answer ("the answer is", "Answer:", ...), only stated labels count.
    Two different labels are no answer. The article "A" is no label.

    >>> only_label("A train goes 5 miles. Answer: C", ["A", "B", "C"])
    'C'
    >>> only_label("either answer1 or answer3", ["answer1", "answer3"]) is None
    True
    """
    label = rf"({_any_of(tuple(labels))})(?!\w)"
    stated = rf"{_STATEMENT}{_OPENING}(?:(?i:option|choice)\b{_OPENING})?{label}"
    named = rf"(?<!\w)(?!{_ARTICLE}){label}"
    found = set(re.findall(stated, response)) or set(re.findall(named, response))
    return found.pop() if len(found) == 1 else None


def last_number(response: str, labels: Sequence[str] = ()) -> str | None:
    """The last number in the text, commas removed.

    A hyphen right before a digit is read as a minus sign, as the published suite does.

    >>> last_number("3 boxes of 400 make 1,200. The answer is 1,200.")
    '1200.'
    """
    numbers = re.findall(r"-?[0-9]+\.?[0-9]*", response.replace(",", ""))
    return numbers[-1] if numbers else None


def stated_number(response: str, labels: Sequence[str] = ()) -> str | None:
    """The number that the text's last statement of its answer gives, else the last number.

    Of a statement, its sentence counts: the number after its last "=", else its first number. A
    comma counts only before three digits, a minus sign only where no digit, letter or bracket
    precedes it.

    >>> stated_number("The answer is 5 - 3 = $2.00. I checked it 3 times.")
    '2.00'
    """
    for statement in reversed(list(re.finditer(_STATEMENT + _OPENING, response))):
        rest = response[statement.end() : statement.end() + _SENTENCE]
        sentence = re.split(r"[.!?](?!\S)|\n", rest, maxsplit=1)[0]
        numbers = _written_numbers(sentence.rpartition("=")[2]) or _written_numbers(sentence)
        if numbers:
            return numbers[0]
    return next(reversed(_written_numbers(response)), None)


def _written_numbers(text: str) -> list[str]:
    r"""Every number in `text`, without commas and currency signs, fractions as decimals.

    >>> _written_numbers(r"\boxed{1{,}234}, 1,\!234, \frac{1}{2}, \frac12, 3/4, 1 1/2 and 5")
    ['1234', '1234', '0.5', '0.5', '0.75', '1.5', '5']
    """
    text = text.replace("{,}", ",").replace(r"\!", "")
    text = re.sub(_LATEX_FRACTION, _plain_fraction, text)
    # A mixed number's whole part is one word before; no fraction is part of a date.
    fraction = r"(?<![\d/.,])(?:(\d+)[ ~]+)?(?<![\d/.,])(\d+)/([1-9]\d*)(?![\d/]|[.,]\d)"
    text = re.sub(fraction, _as_decimal, text)
    minus = r"(?<![\w)\]}.])[-−][$€£]?"
    digits = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
    found = re.findall(rf"({minus})?(?<![A-Za-z_])({digits})", text)
    return [("-" if sign else "") + number.replace(",", "") for sign, number in found]


def _plain_fraction(match: re.Match[str]) -> str:
    """A fraction of LaTeX as "1/2", after a space where it is part of a mixed number."""
    whole, *parts = match.groups()
    top, bottom = (part.strip("{} ") for part in parts)
    sign = "-" if top.startswith("-") != bottom.startswith("-") else ""
    return f"{f'{whole} ' if whole else ''}{sign}{top.lstrip('-')}/{bottom.lstrip('-')}"


def _as_decimal(match: re.Match[str]) -> str:
    whole, top, bottom = match.groups()
    value = float(top) / float(bottom)
    if whole and value >= 1:  # two numbers, no mixed one
        return f"{whole} {_decimal(value)}"
    return _decimal(float(whole or 0) + value)


def _decimal(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".")  # never with an exponent


@functools.cache  # called after every token
def _any_of(labels: tuple[str, ...]) -> str:
    # Longest first, so that `option10` is not read as `option1`.
    return "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


FILTERS: dict[str, AnswerFilter] = {
    "first_label": AnswerFilter(first_label, decided=first_label_decided),
    "last_number": AnswerFilter(last_number, numeric=True),
}
PROTOCOLS: dict[str, dict[str, AnswerFilter]] = {
    PUBLISHED: FILTERS,
    "strict": {
        "first_label": AnswerFilter(only_label),
        "last_number": AnswerFilter(stated_number, numeric=True),
    },
}
