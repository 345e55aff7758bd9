"""Fixtures of the tests that run what the docs say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.pages import ROOT


@pytest.fixture
def in_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the repository's recipes, as a reader's clone has them."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path
