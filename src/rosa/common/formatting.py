"""Durations, sizes, counts and lists of indices for display.

>>> format_duration(12600), format_duration(0.0312), format_duration(600, digits=2)
('3.50 h', '31.2 ms', '10 min')
>>> format_bytes(18.2e9), format_count(1_200_000)
('18.2 GB', '1.2M')
>>> format_indices([0, 1, 2, 6])
'0-2, 6'
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DURATION_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))
BYTE_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
COUNT_UNITS = ((1e9, "B"), (1e6, "M"), (1e3, "k"))
_CONTROL_PICTURES = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\t\n"} | {0x7F: "␡"}


def format_number(value: float, digits: int = 3) -> str:
    """`value` to so many significant digits, trailing zeros included; integer digits all stay."""
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits}g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # after rounding: 99.96 is 100
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_duration(seconds: float, digits: int = 3) -> str:
    """`42.0 s`, `3.50 min` or `2.10 h`; seconds and minutes up to 100 of them."""
    units = zip((6000, 100, 1, -math.inf), DURATION_UNITS, strict=True)
    unit, name = next(unit for floor, unit in units if seconds >= floor)
    return f"{format_number(seconds / unit, digits)} {name}"


def format_bytes(count: float, digits: int = 3) -> str:
    """`3.40 GB` or `1.20 MB`, in powers of ten."""
    unit, name = next((u for u in BYTE_UNITS if count >= u[0]), BYTE_UNITS[-1])
    return f"{count:.0f} B" if unit == 1 else f"{format_number(count / unit, digits)} {name}"


def format_count(value: float) -> str:
    """`1.2M`, `3k` or `512`: three digits without trailing zeros, as an axis shows them."""
    unit, letter = next((u for u in COUNT_UNITS if abs(value) >= u[0]), (1.0, ""))
    return f"{value / unit:.3g}{letter}"


def consecutive_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of ascending numbers: `[6, 7, 14]` gives `[(6, 7), (14, 14)]`."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def format_indices(numbers: Sequence[int]) -> str:
    """`0-2, 6`: ascending numbers as their runs."""
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in consecutive_runs(numbers))


def visible(text: object) -> str:
    """Text with its control characters as pictures, since HTML and fonts have none.

    >>> visible("a\\x00b\\x7f")
    'a␀b␡'
    """
    return str(text).translate(_CONTROL_PICTURES)
