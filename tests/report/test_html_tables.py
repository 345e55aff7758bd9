"""The report's tables: means, places, stars, notes and marks are those of the study."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from markupsafe import escape

from rosa.compare.results import StudyResults
from rosa.report.html.page import render
from rosa.report.html.tables import chapters
from rosa.report.tables import captions
from rosa.report.tables.sections import sections
from tests.support import report_page
from tests.support.report_page import Reader
from tests.support.report_study import rich_study

study, html = report_page.study, report_page.html


def test_a_cell_is_the_mean_and_sample_deviation_over_seeds(study: StudyResults) -> None:
    (block,) = chapters(study)[0].blocks
    assert (block.model, block.train_set, block.suite) == ("rosa-tiny",) + ("commonsense",) * 2
    assert [c.name for c in block.columns] == ["micro", "macro", "boolq", "piqa"]
    row = next(row for row in block.rows if row.method == "rosa")
    runs = study.select(method="rosa", train_set="commonsense")
    for cell, values in zip(
        row.cells,
        (
            [run.micro("commonsense") for run in runs],
            [run.macro("commonsense") for run in runs],
            [run.accuracy("boolq") for run in runs],
            [run.accuracy("piqa") for run in runs],
        ),
        strict=True,
    ):
        assert cell.mean == pytest.approx(sum(values) / 3)
        assert cell.std == pytest.approx(statistics.stdev(values))
    printed = f"{row.cells[0].mean:.1f}"
    assert f"{printed}</b>" in render(study) or row.cells[0].place != 1


def test_best_and_second_go_by_what_is_printed(study: StudyResults) -> None:
    for block in (block for chapter in chapters(study) for block in chapter.blocks):
        for i in range(len(block.columns)):
            places = {row.cells[i].place: round(row.cells[i].mean, 1) for row in block.rows}
            means = sorted({round(row.cells[i].mean, 1) for row in block.rows}, reverse=True)
            assert (places[1], places[2]) == (means[0], means[1])


def test_a_method_that_lacks_a_seed_is_named(study: StudyResults, html: str) -> None:
    row = next(row for row in chapters(study)[0].blocks[0].rows if row.method == "lora")
    assert len(row.runs) == 2
    assert "‡ LoRA: 2 of 3 seeds; seed 2 " in html
    assert "out of memory on purpose" in html
    assert "22 of 24 runs have finished." in html
    assert "2\n    runs failed" in html or "2 runs failed" in html


def test_stars_and_notes_are_those_of_the_tables(study: StudyResults, html: str) -> None:
    for section, chapter in zip(sections(study), chapters(study), strict=True):
        (block,) = chapter.blocks
        for row in block.rows:
            stars = [cell.star is not None for cell in row.cells]
            assert stars == [section.star(block.model, row.method)] + [False] * (len(stars) - 1)
        assert captions.star(section) in chapter.notes
        assert str(escape(captions.star(section))) in html
        for d in section.all_differences:
            assert f"{d.difference:+.1f}".replace("-", "−") in html


def test_questions_seen_in_training_are_marked_as_the_check_found_them(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"math": ["MultiArith", "gsm8k"]}, examples=4)
    titles = [column.title for column in chapters(study)[0].blocks[0].columns]
    assert titles[2:] == ["MultiArith", "GSM8K"]
    checked = {"math": {"MultiArith": {"matches": 3, "of": 4}, "gsm8k": {"matches": 0, "of": 14}}}
    (tmp_path / "overlap.json").write_text(json.dumps(checked))
    titles = [column.title for column in chapters(study)[0].blocks[0].columns]
    assert titles[2:] == ["MultiArith †", "GSM8K"]
    assert "3 of 4 in MultiArith" in render(study)


def test_two_models_are_two_tables_with_one_set_of_notes(tmp_path: Path) -> None:
    study = rich_study(
        tmp_path, models=["tiny-a", "tiny-b"], train_sets={"commonsense": ["boolq"]}, examples=6
    )
    (chapter,) = chapters(study)
    assert [block.model for block in chapter.blocks] == ["tiny-a", "tiny-b"]
    html = render(study)
    assert html.count("Micro avg. is over all examples") == 1
    assert Reader(html).open == []
