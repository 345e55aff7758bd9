"""Durations, sizes and counts as a person reads them."""

import math

import pytest

from rosa.common.formatting import (
    BYTE_UNITS,
    DURATION_UNITS,
    consecutive_runs,
    format_bytes,
    format_count,
    format_duration,
    format_indices,
    format_number,
)


@pytest.mark.parametrize("unit", [*DURATION_UNITS, *BYTE_UNITS[:-1]])
@pytest.mark.parametrize("digits", [2, 3])
def test_what_is_shown_is_the_value_to_its_significant_digits(unit, digits):
    scale, _ = unit
    show = format_duration if unit in DURATION_UNITS else format_bytes
    scales = {name: scale for scale, name in DURATION_UNITS + BYTE_UNITS}
    for value in (1.0, 1.04, 7.777, 42.0, 99.94):
        number, name = show(scale * value, digits).split()
        shown = float(number) * scales[name]
        assert math.isclose(shown, scale * value, rel_tol=0.5 * 10 ** (1 - digits) + 1e-9)


def test_durations_by_the_unit_a_person_would_use():
    shown = [format_duration(s) for s in (0, 0.02, 82, 210, 5999, 7560, 5e6)]
    assert shown == ["0 ms", "20.0 ms", "82.0 s", "3.50 min", "100 min", "2.10 h", "1389 h"]
    assert [format_duration(s, 2) for s in (4.4, 89, 600, 7260)] == [
        "4.4 s",
        "89 s",
        "10 min",
        "2.0 h",
    ]


def test_sizes_in_powers_of_ten():
    assert [format_bytes(b) for b in (0, 999, 64e6, 18.2e9)] == [
        "0 B",
        "999 B",
        "64.0 MB",
        "18.2 GB",
    ]


def test_counts_and_numbers():
    assert [format_count(v) for v in (7, 512, 3000, 1_234_567, -2e9)] == [
        "7", "512", "3k", "1.23M", "-2B",
    ]  # fmt: skip
    assert [format_number(v) for v in (0.3, 12, 250, 1e-9, 99.96, 1234)] == [
        "0.300", "12.0", "250", "1e-09", "100", "1234",
    ]  # fmt: skip


def test_runs_of_indices() -> None:
    assert consecutive_runs([3, 6, 7, 14, 15, 16]) == [(3, 3), (6, 7), (14, 16)]
    assert format_indices([3, 6, 7, 14, 15, 16]) == "3, 6-7, 14-16"
    assert format_indices([]) == ""
