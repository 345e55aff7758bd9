"""A run's pictures: what they show, and what `rosa plot` says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.train import plots
from rosa.train.plots import (
    cell_colors,
    draw_layers,
    draw_loss,
    read_history,
    selection_shares,
    summarize,
)

RECORDS: list[dict[str, Any]] = [
    {"step": 40, "mode": "exploit", "scores": [1.0, 4.0, 2.0], "selected": [1, 2]},
    {"step": 80, "mode": "explore", "scores": [0.5, 0.1, 0.2], "selected": [0, 1]},
    {"step": 120, "mode": "exploit", "scores": [0.0, 0.0, 0.0], "selected": [0, 1]},
]
STATIC = {"step": 1, "mode": "static", "scores": [None] * 3, "selected": [2]}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def hue(cell: np.ndarray) -> str:
    """Which mode's color a cell has."""
    red, green, blue, _ = cell
    if max(cell[:3]) - min(cell[:3]) < 0.02:
        return "grey"
    return "blue" if blue > max(red, green) else "orange" if red > green else "green"


def test_hue_says_how_a_layer_was_chosen_and_opacity_its_score() -> None:
    cells = cell_colors([*RECORDS, STATIC])
    assert cells.shape == (3, 4, 4)
    hues = [[hue(cell) for cell in row] for row in cells]
    assert hues == [
        ["grey", "orange", "blue", "grey"],
        ["blue", "orange", "blue", "grey"],
        ["blue", "grey", "grey", "green"],
    ]
    opacity = cells[:, :, 3]
    assert opacity[1, 0] > opacity[2, 0]  # scores 4 and 2, both chosen
    assert opacity[0, 1] > opacity[1, 1]  # 0.5 and 0.1
    assert opacity[1, 0] == 1  # the largest of its step
    assert np.isfinite(cells).all()


def test_shares_and_summary() -> None:
    assert selection_shares(RECORDS) == pytest.approx([2 / 3, 1.0, 1 / 3])
    assert summarize(RECORDS) == (
        "3 choices among 3 layers: 2 by score, 1 at random; most often layer 1 (100 %), 0 (67 %), "
        "2 (33 %)"
    )
    assert summarize([STATIC]) == (
        "1 choice among 3 layers: 1 given; most often layer 2 (100 %); never 0, 1"
    )


def test_panels_hold_the_shares_and_the_quartiles(tmp_path: Path) -> None:
    figure = Figure()
    counts, scores = figure.subplots(1, 2)
    plots.draw_shares(counts, RECORDS)
    ends: dict[int, float] = {}
    for bar in counts.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0.0), bar.get_x() + bar.get_width())
    assert [ends[i] for i in range(3)] == pytest.approx([200 / 3, 100, 100 / 3])

    plots._draw_scores(scores, RECORDS)
    boxes = np.array([(bar.get_x(), bar.get_x() + bar.get_width()) for bar in scores.patches])
    columns = np.array([record["scores"] for record in RECORDS])
    assert boxes == pytest.approx(np.quantile(columns, [0.25, 0.75], axis=0).T)


def test_without_a_loss_no_loss_is_drawn(tmp_path: Path) -> None:
    assert not draw_loss(tmp_path / "absent.jsonl", tmp_path / "loss.png")
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.001, "log")])
def test_a_loss_that_falls_far_is_drawn_on_a_log_axis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: float, scale: str
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    records = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": last}, {"step": 2, "eval_loss": 1}]
    assert draw_loss(write(tmp_path / "metrics.jsonl", records), tmp_path / "loss.png")
    [axes] = drawn[0].axes
    assert axes.get_yscale() == scale
    train, validation = axes.lines
    assert list(train.get_ydata()) == [1.0, last]
    assert list(validation.get_ydata()) == [1]


@pytest.mark.parametrize(
    ("layers", "choices", "ending"), [(1, 1, "png"), (6, 5, "svg"), (80, 200, "png")]
)
def test_it_is_drawn_at_any_size(tmp_path: Path, layers: int, choices: int, ending: str) -> None:
    records = [
        {"step": 40 * i, "mode": "explore" if i % 5 == 0 else "exploit", "selected": [layers - 1],
         "scores": [math.exp(-i / 9 + (7 * j % 5)) for j in range(layers)]}
        for i in range(1, choices + 1)
    ]  # fmt: skip
    picture = tmp_path / f"layers.{ending}"
    draw_layers(records, picture, "a run")
    if ending == "svg":
        assert len(list(ElementTree.parse(picture).iter())) > 100
    else:
        pixels = imread(picture)
        assert pixels.std() > 0.05  # something is on it
        assert max(pixels.shape) < 2500
    draw_layers([{**STATIC, "scores": [None] * layers, "selected": [0]}], picture, "static")


def test_the_command_draws_a_run_and_says_what_is_on_it(tmp_path: Path, capsys) -> None:
    history = write(tmp_path / "run" / "dls_history.jsonl", RECORDS)
    assert main(["plot", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("3 choices among 3 layers")
    assert str(tmp_path / "run" / "layers.png") in shown
    assert (tmp_path / "run" / "layers.png").stat().st_size
    out = tmp_path / "new" / "map.svg"
    assert main(["plot", str(history), "--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8").startswith("<?xml")


def test_a_line_that_a_kill_tore_is_passed_over(tmp_path: Path) -> None:
    history = write(tmp_path / "dls_history.jsonl", RECORDS)
    history.write_bytes(history.read_bytes()[:-20])
    assert read_history(tmp_path) == RECORDS[:2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no choice"),
        ("{}\n", "row 1 is not a choice of layers"),
        ("1\n", "row 1 is not a choice"),
        (json.dumps({**RECORDS[0], "selected": [3]}) + "\n", "row 1 is not a choice"),
        (json.dumps(RECORDS[0]) + "\n" + json.dumps({**RECORDS[0], "mode": "x"}) + "\n", "row 2"),
        (json.dumps(RECORDS[0]) + "\n" + json.dumps({**STATIC, "scores": [None] * 4}) + "\n",
         "different numbers of layers"),
    ],
)  # fmt: skip
def test_what_is_no_history_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "dls_history.jsonl").write_text(content)
    with pytest.raises(RosaError, match=words):
        read_history(tmp_path)


def test_wrong_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(RosaError, match="no run or history"):
        read_history(tmp_path / "absent")
    with pytest.raises(RosaError, match="trained with dls"):
        read_history(tmp_path)
    (tmp_path / "grid.yaml").write_text("")
    with pytest.raises(RosaError, match="rosa report"):
        read_history(tmp_path)


def test_a_bad_out_is_named(tmp_path: Path, capsys) -> None:
    history = str(write(tmp_path / "dls_history.jsonl", RECORDS))
    for out in ("x.jpg", str(tmp_path), "noending"):
        assert main(["plot", history, "--out", out]) == 2
        assert "give a file that ends in .png" in capsys.readouterr().err
    assert main(["plot", history, "--out", f"{history}/x.png"]) == 2
    assert "file" in capsys.readouterr().err
