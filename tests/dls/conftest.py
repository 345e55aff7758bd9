"""Fixtures of the tests of layer selection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState


def _forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its settings in the process: clears them before and after."""
    _forget_accelerate()
    yield
    _forget_accelerate()
