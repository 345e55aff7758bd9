"""The page's tables are those of `rosa tables`, with what their cells sort by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from markupsafe import escape

from rosa.common.tables.model import Cell, Column, Table
from rosa.compare.results import StudyResults
from rosa.report.html.page import render
from rosa.report.tables.build import difference_table, main_table, runs_table
from rosa.report.tables.costs import cost_table, mean_cost, tuning_table
from rosa.report.tables.sections import TableOptions, sections
from tests.support.report_page import Reader
from tests.support.report_study import rich_study


def as_shown(cell: Cell, column: Column) -> str:
    text = column.shown(cell.value)
    for digit in "0123456789":
        text = text.replace(f"-{digit}", f"−{digit}")
    spread = "" if cell.spread is None else f"\u2009±{cell.spread:.{column.digits}f}"
    return text + spread + "*" * cell.star


def rows_of(table: Table) -> list[list[str]]:
    """A table's cells as the page should show them."""
    marks = [f" {column.mark}".rstrip() for column in table.columns]
    head = [table.head, *(c.title + m for c, m in zip(table.columns, marks, strict=True))]
    rows = [head]
    for block in table.blocks:
        rows += [[block.title]] if table.names_models else []
        for row in block.rows:
            label = f"{row.label} {row.mark}".rstrip()
            rows.append([label, *map(as_shown, row.cells, table.columns)])
    return rows


def test_the_page_shows_every_table(study: StudyResults, html: str) -> None:
    expected: list[Table] = []
    for section in sections(study, TableOptions(std=True)):
        expected.append(main_table(section, averages_first=True))
        expected += [difference_table(section), runs_table(section)]
    for make in (cost_table, tuning_table):
        tables = [make(study, "rosa-tiny", name) for name in ("commonsense", "math")]
        expected += [table for table in tables if table]
    assert len(expected) == 10
    assert Reader(html).tables == [rows_of(table) for table in expected]
    for table in expected:
        for note in table.all_notes("Bold", "underlined"):
            assert str(escape(note)) in html


def test_averages_come_first_with_the_same_cells(study: StudyResults) -> None:
    for section in sections(study, TableOptions(std=True)):
        first, last = main_table(section, averages_first=True), main_table(section)
        titles = [column.title for column in first.columns]
        assert titles[:3] == ["# Param (%)", "Micro avg. (%)", "Macro avg. (%)"]
        for ours, theirs in zip(first.rows, last.rows, strict=True):
            cells = dict(zip((c.title for c in last.columns), theirs.cells, strict=True))
            assert list(ours.cells) == [cells[title] for title in titles]
            assert all(cell.spread is not None for cell in ours.cells[1:])


def test_a_run_has_a_row_with_its_own_scores(study: StudyResults) -> None:
    table = runs_table(sections(study)[0])
    runs = study.select(train_set="commonsense")
    assert len(table.rows) == len(runs) == 11
    for row, run in zip(table.rows, runs, strict=True):
        assert (row.label, row.group) == (run.title, run.group)
        values = [cell.value for cell in row.cells]
        assert values[:3] == [run.seed, run.learning_rate, run.trainable]
        assert values[3:5] == [run.micro("commonsense"), run.macro("commonsense")]
        assert values[5:] == [run.accuracy("boolq"), run.accuracy("piqa")]


def test_costs_are_means_over_the_seeds_that_have_them(study: StudyResults) -> None:
    table = cost_table(study, "rosa-tiny", "math")
    assert table is not None
    titles = [column.title for column in table.columns]
    assert titles[:3] == ["Trainable", "Training", "Step"]
    assert "Host memory" in titles
    assert not {"GPU memory", "Energy"} & set(titles)
    runs = study.select(train_set="math", method="rosa")
    row = next(row for row in table.rows if row.label == "RoSA")
    seconds = [run.costs["train_seconds"] for run in runs]
    assert row.cells[1].value == pytest.approx(sum(seconds) / 3)
    assert table.columns[1].shown(82.0) == "82.0 s"
    assert mean_cost(runs, "peak_device_bytes") is None


def test_the_chosen_learning_rate_is_styled(study: StudyResults) -> None:
    table = tuning_table(study, "rosa-tiny", "math")
    assert table is not None
    assert [column.title for column in table.columns] == ["0.0003", "0.001", "0.003"]
    for row in table.rows:
        assert [cell.style for cell in row.cells] == ["", "best", ""]
        assert row.cells[2].value is None


def test_a_method_that_lacks_a_seed_is_named(html: str) -> None:
    assert "‡ LoRA: 2 of 3 seeds; seed 2 " in html
    assert "out of memory on purpose" in html
    assert "22 of 24 runs have finished." in html
    assert "2 runs failed" in html


@pytest.mark.usefixtures("no_plots")
def test_questions_seen_in_training_are_marked_as_the_check_found_them(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"math": ["MultiArith", "gsm8k"]}, examples=4)
    assert Reader(render(study)).tables[0][0][-2:] == ["MultiArith", "GSM8K"]
    checked = {"math": {"MultiArith": {"matches": 3, "of": 4}, "gsm8k": {"matches": 0, "of": 14}}}
    (tmp_path / "overlap.json").write_text(json.dumps(checked))
    html = render(study)
    assert Reader(html).tables[0][0][-2:] == ["MultiArith †", "GSM8K"]
    assert "3 of 4 in MultiArith" in html


@pytest.mark.usefixtures("no_plots")
def test_two_models_are_two_blocks_with_one_set_of_notes(tmp_path: Path) -> None:
    study = rich_study(
        tmp_path, models=["tiny-a", "tiny-b"], train_sets={"commonsense": ["boolq"]}, examples=6
    )
    html = render(study)
    read = Reader(html)
    assert read.open == []
    assert [row[0] for row in read.tables[0] if len(row) == 1] == ["tiny-a", "tiny-b"]
    assert html.count("Micro avg. is over all examples") == 1
