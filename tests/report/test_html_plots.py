"""The page's plots: SVG that a strict page can hold, and what each of them shows."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import pytest

from rosa.common.plot_style import INK, percent_axis, styled_figure
from rosa.compare.results import StudyResults
from rosa.report.html import plots
from rosa.report.plots.svg import svg
from rosa.report.tables.costs import format_energy
from rosa.train.plots import draw_map, draw_shares


def titles(markup: str) -> list[str]:
    """What the plot says on hover."""
    return [t.text or "" for t in ElementTree.fromstring(markup).iter("title")]


def test_svg_has_text_theme_colors_and_titles_but_no_style() -> None:
    with styled_figure(3, 2) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, gid="seed 1: <b>&")
        axes.set_title("a $_$ <b>")
        markup = svg(figure, 'a "plot"\x02')
        assert svg(figure, 'a "plot"\x02') == markup
    root = ElementTree.fromstring(markup)
    assert root.attrib == {"viewBox": "0 0 216 144", "role": "img", "aria-label": 'a "plot"␂'}
    assert "a $_$ <b>" in [text.text for text in root.iter("text")]
    assert titles(markup) == ["seed 1: <b>&"]
    assert 'stroke="var(--ink)"' in markup
    for word in ("style", "url(", "xmlns", "metadata", "clip"):
        assert word not in markup
    ids = {element.get("id") for element in root.iter()} - {None}
    assert ids == {e.attrib["href"][1:] for e in root.iter("use")}


def test_plots_of_one_page_share_no_id(html: str) -> None:
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids)) > 20


@pytest.mark.parametrize(
    ("values", "low", "high"), [([0.0, 0.0], -2, 2), ([99.8, 100.0], 97.9, 101.9)]
)
def test_an_axis_of_accuracies_neither_blows_up_noise_nor_leaves_0_to_100(
    values: list[float], low: float, high: float
) -> None:
    with styled_figure(3, 2) as figure:
        axes = figure.subplots()
        percent_axis(axes, "x", values)
        assert axes.get_xlim() == pytest.approx((low, high))
        assert all(0 <= tick <= 100 for tick in axes.get_xticks())
        assert len(axes.get_xticks()) > 1


@pytest.mark.usefixtures("written")
def test_result_plots_show_every_seed_and_every_cost(
    study: StudyResults, drawn: dict[str, list[Any]]
) -> None:
    (group,), _ = drawn["result_plots"]  # a section each
    names = [plot.title for plot in group.plots]
    assert names[0] == "Micro avg."
    assert names[1:] == [
        f"Accuracy and {cost}" for cost in ("trainable parameters", "training time", "peak memory")
    ]
    assert [plot.title for plot in group.details] == ["BoolQ", "PIQA"]
    for run in study.select(train_set="commonsense", method="rosa"):
        assert f"seed {run.seed}: {run.micro('commonsense'):.1f}" in group.plots[0].svg
        assert f"seed {run.seed}: {run.accuracy('piqa'):.1f}" in group.details[1].svg
    mean = sum(r.micro("commonsense") for r in study.select(train_set="commonsense", method="rosa"))
    assert f"RoSA: {mean / 3:.1f} %, 5e+04" in group.plots[1].svg
    assert all(len(titles(plot.svg)) == 4 for plot in group.plots)  # one per method


@pytest.mark.usefixtures("written")
def test_layer_plots_show_the_choices_of_every_seed(
    study: StudyResults, drawn: dict[str, list[Any]]
) -> None:
    (((_, methods), _),) = drawn["layer_plots"]
    assert [method.title for method in methods] == ["RoSA"]  # alone it has a history
    assert [plot.title for plot in methods[0].plots] == ["All seeds", "Seed 1", "Seed 2", "Seed 3"]
    assert all("data:image/png" in plot.svg for plot in methods[0].plots[1:])
    lines = [
        json.loads(line)
        for run in study.select(method="rosa", train_set="commonsense")
        for line in (study.folder / run.folder / "dls_history.jsonl").read_text().splitlines()
    ]
    random = sum(line["mode"] == "explore" for line in lines)
    assert f"60 choices among 6 layers: {60 - random} by score, {random} at random" in (
        methods[0].note
    )
    counts = Counter(layer for line in lines for layer in line["selected"])
    with styled_figure(3, 2) as figure:
        axes = figure.subplots()
        draw_shares(axes, lines)
        ends = Counter[int]()
        for bar in axes.patches:
            ends[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
    assert [ends[i] for i in range(6)] == pytest.approx([100 * counts[i] / 60 for i in range(6)])


def test_layers_that_were_given_once_and_never_scored_are_drawn() -> None:
    static = {"step": 1, "mode": "static", "scores": [None] * 3, "selected": [2]}
    for draw in (draw_map, draw_shares):
        plot = plots._layers("Seed 1 of RoSA", [static], draw)
        assert plot.title == "Seed 1"
        assert "nan" not in plot.svg


@pytest.mark.usefixtures("written")
def test_loss_plots_have_a_curve_per_seed_without_what_is_no_number(
    drawn: dict[str, list[Any]],
) -> None:
    ((first, _),) = drawn["loss_plots"]
    assert [plot.title for plot in first.plots] == ["LoRA", "LN Tuning", "RoSA", "RoSA-RoAEonly"]
    for plot, seeds in zip(first.plots, ([1, 3], *[[1, 2, 3]] * 3), strict=True):
        expected = [f"seed {seed}: {kind}" for seed in seeds for kind in ("training", "validation")]
        assert titles(plot.svg) == expected
        assert "nan" not in plot.svg
        assert re.fullmatch(r"ends at [\d.]+, validation [\d.]+", plot.note)


def test_long_curves_are_thinned_with_their_ends() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    kept = plots.thin(points, 120)
    assert len(kept) == 120
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_energy_has_units() -> None:
    assert [format_energy(joules) for joules in (250.0, 7200.0)] == ["0.250 kJ", "2.00 Wh"]
