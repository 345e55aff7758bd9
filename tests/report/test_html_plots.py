"""The report's pictures: axes, labels, units, choices of layers and curves."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.compare.results import StudyResults
from rosa.report.html import training
from rosa.report.html.axes import Axis, fit, fit_percent
from rosa.report.html.scatter import label_box, overlap, place_labels
from tests.support import report_page

finite = st.floats(-1e6, 1e6, allow_subnormal=False)


study, html = report_page.study, report_page.html


@given(st.lists(finite, min_size=1, max_size=20))
def test_a_fitted_axis_shows_every_value_and_round_ticks(values: list[float]) -> None:
    axis = fit(values)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in ticks)
    assert 2 <= len(ticks) <= 11


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20))
def test_a_logarithmic_axis_does_too(values: list[float]) -> None:
    axis = fit(values, log=True)
    assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in values)
    assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in axis.ticks())


def test_ticks_are_round() -> None:
    assert [t.text for t in Axis(0, 100).ticks()] == ["0", "20", "40", "60", "80", "100"]
    assert [t.text for t in Axis(1e3, 1e6, True).ticks()] == ["1k", "10k", "100k", "1M"]
    assert [t.text for t in Axis(50.3, 70.1).ticks()] == ["55", "60", "65", "70"]


def test_an_axis_of_accuracies_neither_blows_up_noise_nor_leaves_0_to_100() -> None:
    axis, ticks = fit_percent([0.0, 0.0])
    assert axis.high - axis.low >= 4
    assert min(tick.value for tick in ticks) == 0
    axis, ticks = fit_percent([99.8, 100.0])
    assert max(tick.value for tick in ticks) == 100
    assert axis.at(100.0) < 1


@given(
    st.lists(st.tuples(st.floats(45, 400), st.floats(30, 260)), min_size=1, max_size=25),
    st.integers(1, 14),
)
def test_labels_cover_neither_each_other_nor_a_dot(
    places: list[tuple[float, float]], length: int
) -> None:
    names = ["n" * length] * len(places)
    found = place_labels(names, [(x, y, 4.0) for x, y in places])
    boxes = [label_box(label, "n" * length) for label in found if label]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert not any(overlap(box, (x - 4, y - 4, x + 4, y + 4)) for box in boxes for x, y in places)


def test_layer_shares_count_the_choices(study: StudyResults) -> None:
    (_, _, methods), _ = training.layers(study)
    assert [m.title for m in methods] == ["RoSA", "RoSA-RoAEonly"]
    runs = study.select(method="rosa", train_set="commonsense")
    lines = [
        json.loads(line)
        for run in runs
        for line in (study.folder / run.folder / "dls_history.jsonl").read_text().splitlines()
    ]
    counts = Counter(layer for line in lines for layer in line["selected"])
    assert methods[0].shares == pytest.approx([100 * counts[i] / len(lines) for i in range(6)])
    first = methods[0].maps[0]
    chosen = sum(path.count("M") for kind, path in first.paths if kind[0] == "c")
    passed = sum(path.count("M") for kind, path in first.paths if kind[0] == "n")
    assert (chosen, passed) == (20 * 3, 20 * 3)
    assert len(first.explored) == sum(line["mode"] == "explore" for line in lines[:20])


def test_curves_leave_out_what_is_no_number(study: StudyResults, html: str) -> None:
    (first, _) = training.losses(study)
    assert [len(panel.curves) for panel in first.panels] == [2, 3, 3, 3]
    assert all(curve.path.count(",") == 39 for panel in first.panels for curve in panel.curves)
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', html))


def test_long_curves_are_thinned_with_their_ends() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    kept = training.thin(points, 120)
    assert len(kept) == 120
    assert (kept[0], kept[-1]) == (points[0], points[-1])
