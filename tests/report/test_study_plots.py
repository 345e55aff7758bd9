"""The pictures of a study are drawn from its runs."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from rosa.compare.job import folder_name
from rosa.report.plots.study_plots import best_first, cost_points, write_pictures
from tests.support.synthetic_study import synthetic_study


def test_a_picture_of_each_suite_and_its_figures(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path, train_sets={"toy $_$": ("boolq", "piqa")}, examples=10)
    runs = (replace(r, title=f"{r.title} $_$") for r in study.runs)  # a title is no formula
    study = replace(study, runs=tuple(runs))
    files = write_pictures(study, tmp_path / "figures")
    folder = folder_name("toy $_$")
    assert [file.name for file in files] == [
        f"rosa-tiny-{folder}-commonsense-methods.png",
        f"rosa-tiny-{folder}-commonsense-costs.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    rows = best_first(study.runs, "commonsense")
    points = {point.name: point for point in cost_points(rows, "commonsense")}
    means = {name: statistics.fmean(r.micro("commonsense") for r in rows[name]) for name in rows}
    assert list(means.values()) == sorted(means.values(), reverse=True)  # the best one on top
    expected = statistics.fmean(run.micro("commonsense") for run in rows["lora"])
    assert points["LoRA $_$"].accuracy == expected
