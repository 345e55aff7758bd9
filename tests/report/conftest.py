"""One study and its page for all tests of the report."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rosa.cli.main import main
from rosa.compare.results import StudyResults
from rosa.report.html import page, write_report
from tests.support.browser import Browser, find_browser
from tests.support.report_study import rich_study, spoil

PLOTS = ("result_plots", "loss_plots", "layer_plots")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    folder = tmp_path_factory.mktemp("study")
    tasks = {"commonsense": ["boolq", "piqa"], "math": ["gsm8k"]}
    return rich_study(folder, failed=[("lora", 2)], examples=40, train_sets=tasks)


@pytest.fixture(scope="session")
def drawn() -> dict[str, list[Any]]:
    """What each function of `PLOTS` returned while the page was `written`."""
    return {name: [] for name in PLOTS}


@pytest.fixture(scope="session")
def written(study: StudyResults, drawn: dict[str, list[Any]]) -> Path:
    """The page, by the command."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PLOTS:
            patch.setattr(page.plots, name, recorded(getattr(page.plots, name), drawn[name]))
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(["report", str(study.folder)]) == 0
    path = study.folder / "report.html"
    assert out.getvalue() == f"{path}\n"
    return path


def recorded(draw: Any, results: list[Any]) -> Any:
    def call(argument: Any) -> Any:
        results.append(draw(argument))
        return results[-1]

    return call


@pytest.fixture(scope="session")
def html(written: Path) -> str:
    return written.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def clean_and_spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, StudyResults, Path]:
    """The page of a small study, and the study and page with nasty texts wherever texts are."""
    folder = tmp_path_factory.mktemp("spoiled")
    skills, tasks = {"ln_tuning": 0.4, "rosa": 0.7}, {"commonsense": ["boolq"]}
    clean = rich_study(folder, examples=8, skills=skills, train_sets=tasks, seeds=[1, 2])
    failures = ({"run": "a", "error": "b"},) * 7  # as many as `spoil` makes
    first = page.render(dataclasses.replace(clean, failures=failures))
    spoiled = spoil(clean)
    return first, spoiled, write_report(spoiled, folder / "report.html")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with Browser(str(find_browser())) as browser:
        yield browser


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of a page's time, and many tests are about the rest of it."""
    for name in PLOTS:
        monkeypatch.setattr(page.plots, name, lambda _: [])
