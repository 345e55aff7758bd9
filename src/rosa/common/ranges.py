"""Ascending indices as the runs that they form, for sentences and pictures."""

from __future__ import annotations

from collections.abc import Sequence


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run: `[6, 7, 14, 15]` gives `[(6, 7), (14, 15)]`."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def in_words(numbers: Sequence[int]) -> str:
    """As a person reads them: `[0, 1, 2, 6]` gives `0-2, 6`."""
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in runs(numbers))
