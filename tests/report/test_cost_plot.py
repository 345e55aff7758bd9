"""The picture of costs: the Pareto front is right, and no label covers another."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Annotation

from rosa.common.label_placement import Mark, overlaps, place_labels
from rosa.errors import RosaError
from rosa.report.plots.cost_plot import CostPoint, draw_costs, pareto_front

NAMES = [
    "LoRA",
    "DoRA",
    "AdaLoRA",
    "BOFT",
    "VeRA",
    "C3A",
    "BONE",
    "LN-Tuning",
    "RoSA",
    "RoAE-only",
    "Lr128",
    "norms-only",
]


def points(seed: int = 0) -> list[CostPoint]:
    dice = random.Random(seed)
    return [
        CostPoint(
            name,
            dice.uniform(60, 95),
            dice.uniform(40, 100),
            dice.uniform(6e8, 7e8),
            dice.randrange(3_000, 300_000),
            "variant" if name.startswith("R") else "baseline",
        )
        for name in NAMES
    ]


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(found: list[tuple[int, int]]) -> None:
    def beaten(i: int) -> bool:
        cost, accuracy = found[i]
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in found)

    front = pareto_front([c for c, _ in found], [a for _, a in found])
    assert sorted(front) == [i for i in range(len(found)) if not beaten(i)]
    assert [found[i][0] for i in front] == sorted(found[i][0] for i in front)


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_one_another_nor_a_mark(seed: int) -> None:
    figure = Figure(figsize=(6, 4.5), dpi=150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.subplots()
    axes.set(xlim=(30, 110), ylim=(50, 100))
    marks = [Mark(p.seconds or 0, p.accuracy, 5, p.name) for p in points(seed)]
    marks += [Mark(70 + i, 80 + i / 9, 5, f"crowd {i}") for i in range(5)]
    place_labels(axes, renderer, marks)
    inside = axes.get_window_extent(renderer).extents
    texts = [t for t in axes.texts if isinstance(t, Annotation)]
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    assert [text.get_text() for text in texts] == [mark.name for mark in marks]
    assert np.triu(overlaps(boxes, boxes), 1).max() < 1
    centers = axes.transData.transform([(mark.x, mark.y) for mark in marks])
    assert overlaps(np.hstack([centers - 5, centers + 5]), boxes).max() < 1
    assert (boxes[:, :2] > inside[:2] - 1).all()
    assert (boxes[:, 2:] < inside[2:] + 1).all()


def test_overlaps_are_areas() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 4, 3], [2, 0, 3, 1]])
    assert overlaps(boxes, boxes).tolist() == [[4, 1, 0], [1, 6, 0], [0, 0, 1]]


def drawn(monkeypatch: pytest.MonkeyPatch, found: list[CostPoint], path: Path) -> list[Any]:
    """The axes of the picture."""
    kept: list[Any] = []
    save = Figure.savefig

    def keep(self: Figure, file: Path, **options: Any) -> None:
        kept.extend(self.axes)
        if file.name == "costs.png":
            save(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_costs(found, path)
    return kept


def test_a_panel_each_for_parameters_time_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, time, memory = drawn(monkeypatch, points(), tmp_path / "costs.png")
    assert imread(tmp_path / "costs.png").std() > 0.01
    assert parameters.get_xlabel() == "trainable parameters"
    assert time.get_xlabel() == "training time (minutes)"
    assert memory.get_xlabel() == "peak memory (MB)"
    dots = [float(c.get_offsets()[0][0]) for c in time.collections]
    assert dots == pytest.approx([(p.seconds or 0) / 60 for p in points()])
    best = max(points(), key=lambda p: p.accuracy)
    assert time.lines[0].get_ydata()[-1] == best.accuracy
    assert parameters.get_ylim() == time.get_ylim() == memory.get_ylim()


def test_what_was_not_measured_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [CostPoint("a", 50, None, 1e9, 10), CostPoint("b", 50, None, 90e9, 10)]
    _, memory = drawn(monkeypatch, some, tmp_path / "costs.svg")
    assert memory.get_xscale() == "log"
    assert memory.get_xlabel() == "peak memory (GB)"
    _, time = drawn(monkeypatch, [CostPoint("a", 0, 0, None, 0)], tmp_path / "one.png")
    assert time.get_xlabel() == "training time (seconds)"
    [alone] = drawn(monkeypatch, [CostPoint("a", 50, None, None, 10)], tmp_path / "none.png")
    assert alone.get_xlabel() == "trainable parameters"
    with pytest.raises(RosaError, match="no point"):
        draw_costs([], tmp_path / "nothing.png")
    assert not (tmp_path / "nothing.png").exists()
