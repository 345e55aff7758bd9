"""Parametrization with values that only the nightly run takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def over(argument: str, values: Iterable[Any], nightly: Iterable[Any] = ()) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize`, where the `nightly` values are marked as slow."""
    slow = [pytest.param(value, marks=pytest.mark.slow) for value in nightly]
    return pytest.mark.parametrize(argument, [*values, *slow])


each_stage = over("stage", ["post"], nightly=["pre"])
