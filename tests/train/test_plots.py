"""The picture of a run's loss shows what its file says."""

from __future__ import annotations

import json
from pathlib import Path

from rosa.train import loss_plot as plots


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not plots.draw_loss(tmp_path / "absent.jsonl", tmp_path / "loss.png")
    assert not list(tmp_path.glob("*.png"))


def test_a_loss_that_falls_far_is_drawn_on_a_log_axis(tmp_path: Path, monkeypatch) -> None:
    scales = []
    figure = plots._figure

    def remember(width: float, height: float):
        drawn, axes = figure(width, height)
        scales.append(axes)
        return drawn, axes

    monkeypatch.setattr(plots, "_figure", remember)
    for last in (0.5, 0.001):
        records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": last}, {"step": 2, "eval_loss": 1}]
        assert plots.draw_loss(write(tmp_path / "m", records), tmp_path / "loss.png")
    assert [axes.get_yscale() for axes in scales] == ["linear", "log"]
    line, dots = scales[0].lines
    assert list(line.get_ydata()) == [1.0, 0.5]
    assert list(dots.get_ydata()) == [1]
