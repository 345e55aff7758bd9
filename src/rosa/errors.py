"""The exception for a user's mistakes, and what its messages are made of."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class RosaError(ValueError):
    """Bad input, with what to do about it; the commands print it and exit with 2."""


class DivergedError(RosaError):
    """A training run whose loss or weights are no longer finite."""


def check_number(
    name: str, value: Any, holds: Callable[[Any], bool], expected: str, kind: Any = (int, float)
) -> None:
    """Raises RosaError, "NAME must be EXPECTED", unless `value` is a `kind` (no bool) and holds."""
    if isinstance(value, bool) or not isinstance(value, kind) or not holds(value):
        raise RosaError(f"{name} must be {expected}, not {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises RosaError, "NAME must be one of CHOICES", for any other value."""
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise RosaError(f"{name} must be one of {', '.join(choices)}, not {value!r}{hint}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest of `known`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def one_line(error: BaseException) -> str:
    """The message of a library's exception without line breaks, truncated; else its type."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def errors_as(what: str) -> Iterator[None]:
    """Raises a library's exception as `RosaError("WHAT: its message")`."""
    try:
        yield
    except RosaError:
        raise
    except Exception as error:
        raise RosaError(f"{what}: {one_line(error)}") from error
