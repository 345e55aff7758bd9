"""The pictures of a run show what its files say."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.image import imread

from rosa.study import plots


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert not plots.draw_loss(tmp_path / "absent.jsonl", tmp_path / "loss.png")
    assert not plots.draw_layers(write(tmp_path / "empty", []), tmp_path / "layers.png")
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


def test_layers_map_is_drawn_for_any_number_of_layers(tmp_path: Path) -> None:
    for layers in (1, 6, 80):
        records = [
            {"step": 40 * i, "mode": mode, "scores": [0.0] * layers, "selected": [layers - 1]}
            for i, mode in enumerate(("exploit", "explore"), start=1)
        ]
        picture = tmp_path / f"{layers}.png"
        assert plots.draw_layers(write(tmp_path / "h", records), picture)
        pixels = imread(picture)
        assert pixels.std() > 0.01  # something is on it
        assert pixels.shape[0] < 4000
