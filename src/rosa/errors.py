"""The one exception a user may see: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RosaError(ValueError):
    """Bad input. The command line prints its message, without a traceback, and exits with 2."""


class DivergedError(RosaError):
    """A training run whose loss or weights stopped being finite numbers."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
