"""One study and its page for all tests of the report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rosa.compare.results import StudyResults
from rosa.report.html import page, write_report
from tests.support.browser import Browser, find_browser
from tests.support.report_study import rich_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    folder = tmp_path_factory.mktemp("study")
    return rich_study(folder, failed=[("lora", 2)], examples=40)


@pytest.fixture(scope="session")
def written(study: StudyResults) -> Path:
    return write_report(study, study.folder / "report.html")


@pytest.fixture(scope="session")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with Browser(str(find_browser())) as browser:
        yield browser


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of a page's time, and many tests are about the rest of it."""
    for name in ("result_plots", "loss_plots", "layer_plots"):
        monkeypatch.setattr(page.plots, name, lambda _: [])
