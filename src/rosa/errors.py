"""The exception for a user's mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RosaError(ValueError):
    """Bad input, with what to do about it; the commands print it and exit with 2."""


class DivergedError(RosaError):
    """A training run whose loss or weights are no longer finite."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
