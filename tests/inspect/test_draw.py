"""The pictures: marks where the low frequencies are, scales that say what they hide, no overlap."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from rosa.errors import RosaError
from rosa.inspect import Inspection, TokenizedTexts, draw_adapter, draw_comparison, draw_figure1
from rosa.inspect.adapter_effect import PERCENTILES, LayerEffect, SignalStatistics
from rosa.inspect.capture import LayerStates
from rosa.inspect.draw import color_scale
from rosa.inspect.strength import low_dimensions
from rosa.rope import HookPoint, RopeLayout

SHAPES = {"tiny": (6, 4, 2, 32), "large": (80, 64, 8, 128), "least": (1, 1, 1, 4)}


def made_up(shape: str = "tiny", pairing: str = "halves", adapter: bool = True) -> Inspection:
    """An inspection of random numbers."""
    layers, queries, keys, size = SHAPES[shape]
    layout = RopeLayout(
        64, size, size, pairing, HookPoint("q", "flat", queries), HookPoint("k", "flat", keys)
    )
    draw = np.random.default_rng(0)
    turns = 10000.0 ** (-np.arange(size // 2) / (size // 2))

    def states() -> list[LayerStates]:
        heads = lambda n: draw.gamma(2, 1, (n, size))  # noqa: E731
        return [LayerStates(i, layout, turns, heads(queries), heads(keys)) for i in range(layers)]

    def spread(heads: int) -> SignalStatistics:
        values = np.sort(draw.normal(0, 0.1, len(PERCENTILES)))
        return SignalStatistics(
            dict(zip(PERCENTILES, values, strict=True)), 1.0, draw.gamma(1, 1, heads)
        )

    low = low_dimensions(layout, 0.5 if size == 4 else 0.25)
    return Inspection(
        model="some/adapter-with-a-rather-long-name-as-people-give-them"
        if adapter
        else "some/base",
        base="some/base",
        method="ROSA" if adapter else None,
        texts=TokenizedTexts([[1] * 9], "a/dataset"),
        r_low=0.25,
        low=[low] * layers,
        states=states(),
        base_states=states() if adapter else None,
        effects=[LayerEffect(i, low, spread(queries), spread(keys)) for i in range(layers)],
        norm_changes=[{"input_layernorm": 0.1, "post_feedforward_layernorm": 0.2}] * layers,
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in order; not rendered, which takes seconds."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, picture: figures.append(figure))
    return figures


def words(figure: Figure) -> list[tuple[str, Any]]:
    """Every text that was drawn with its box, in pixels; only ticks within the axis are drawn."""
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {tick.label1, tick.label2}
    texts = figure.findobj(lambda a: isinstance(a, Text) and a.get_visible())
    shown = [text for text in texts if text.get_text().strip() and text not in hidden]
    return [(text.get_text(), text.get_window_extent()) for text in shown]


@pytest.mark.parametrize(
    ("shape", "pairing"),
    [
        ("large", "interleaved"),
        pytest.param("tiny", "halves", marks=pytest.mark.slow),
        pytest.param("least", "halves", marks=pytest.mark.slow),
    ],
)
def test_no_text_is_on_another_or_cut(
    shape: str, pairing: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    inspection = made_up(shape, pairing)
    draw_figure1(inspection, tmp_path / "1.png")
    draw_comparison(inspection, tmp_path / "2.png")
    draw_adapter(inspection, tmp_path / "3.png")
    assert len(drawn) == 3
    for n, figure in enumerate(drawn):
        picture = tmp_path / f"{n}.png"
        FigureCanvasAgg(figure).print_png(picture)  # in its own resolution, to be measured
        texts = words(figure)
        assert len(texts) > 15
        inner = [(text, box.shrunk(0.96, 0.9)) for text, box in texts]  # boxes have some air
        for (one, box), (other, second) in combinations(inner, 2):
            assert not box.overlaps(second), (picture.name, one, other)
        width, height = figure.bbox.size
        for text, box in inner:
            assert 0 <= box.x0 < box.x1 <= width, (picture.name, text)
            assert 0 <= box.y0 < box.y1 <= height, (picture.name, text)
        assert imread(picture).std() > 0.05


def test_the_maps_show_the_numbers(tmp_path: Path, drawn: list[Figure]) -> None:
    inspection = made_up()
    draw_figure1(inspection, tmp_path / "1.png", layer=2)
    images = [axes.get_images()[0].get_array() for axes in drawn[0].axes if axes.get_images()]
    heads, layers = images[0], images[1]
    np.testing.assert_array_equal(heads, inspection.states[2].query)
    np.testing.assert_allclose(layers[4], np.sqrt((inspection.states[4].query ** 2).mean(0)))
    bars = drawn[0].axes[2].patches
    assert [bar.get_width() for bar in bars] == [100 * s for s in inspection.energy_shares("query")]
    draw_comparison(inspection, tmp_path / "2.png", layer=2)
    before, after, change = (axes.get_images()[0].get_array() for axes in drawn[1].axes[6:9])
    np.testing.assert_array_equal(before, inspection.base_states[2].query)
    np.testing.assert_array_equal(change, after - before)


@pytest.mark.parametrize(
    ("pairing", "edges"), [("halves", {11.5, 15.5, 27.5}), ("interleaved", {23.5})]
)
def test_low_frequencies_are_marked(
    pairing: str, edges: set[float], tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_figure1(made_up(pairing=pairing), tmp_path / "1.png")
    heads = drawn[0].axes[0]
    upright = {x for line in heads.lines if len({x := line.get_xdata()[0], *line.get_xdata()}) == 1}
    assert upright == edges
    labels = [text for text in heads.texts if text.get_text() == "low frequency"]
    assert len(labels) == (2 if pairing == "halves" else 1)


def test_a_scale_that_is_cut_says_so() -> None:
    grid = np.ones((10, 100))
    assert color_scale([grid], "RMS") == (1.0, {"label": "RMS", "fraction": 0.05, "pad": 0.015})
    grid[3, 5] = 40
    top, bar = color_scale([grid], "RMS")
    assert (top, bar["label"], bar["extend"]) == (1.0, "RMS (largest 40)", "max")
    assert color_scale([np.zeros((2, 2))], "RMS")[0] == 1.0


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    base = made_up(adapter=False)
    with pytest.raises(RosaError, match=r"has no layer 6 .*; it has 0-5"):
        draw_figure1(base, tmp_path / "1.png", layer=6)
    with pytest.raises(RosaError, match="has no adapter"):
        draw_comparison(base, tmp_path / "2.png")
    base.effects.clear()
    with pytest.raises(RosaError, match="has no RoSA adapter"):
        draw_adapter(base, tmp_path / "3.png")
    assert not list(tmp_path.iterdir())
