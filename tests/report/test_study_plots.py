"""The pictures of a study are drawn from its runs."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

from rosa.report.plots.study_plots import by_method, cost_points, write_pictures
from tests.support.synthetic_study import synthetic_study


def test_any_title_is_drawn_as_it_is(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path, train_sets={"toy $_$": ("boolq",)})
    runs = (replace(run, title="a $_$ b", costs={"train_seconds": 3.0}) for run in study.runs)
    assert len(write_pictures(replace(study, runs=tuple(runs)), tmp_path / "figures")) == 2


def test_a_picture_of_each_suite_and_its_figures(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path, train_sets={"commonsense": ("boolq", "piqa")})
    files = write_pictures(study, tmp_path / "figures")
    assert [file.name for file in files] == [
        "rosa-tiny-commonsense-commonsense-methods.png",
        "rosa-tiny-commonsense-commonsense-costs.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    rows = by_method(study.select(train_set="commonsense"), "commonsense")
    points = {point.name: point for point in cost_points(rows, "commonsense")}
    means = {name: statistics.fmean(r.micro("commonsense") for r in rows[name]) for name in rows}
    assert list(means.values()) == sorted(means.values(), reverse=True)  # the best one on top
    expected = statistics.fmean(run.micro("commonsense") for run in rows["lora"])
    assert points["LoRA"].accuracy == expected
