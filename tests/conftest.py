"""Fixtures that every test module may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real benchmark data: $ROSA_TEST_DATA, or `../shared/data` beside the repo."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ROSA_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder}; set ROSA_TEST_DATA to its folder")
    return folder
