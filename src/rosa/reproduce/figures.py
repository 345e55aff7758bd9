"""Figures 3 and 4 of the paper from a study's results, the paper's own beside them.

Each half has an axis of its own: a study on another model or other data is not the paper's, and
what can be compared is the shape.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.assets.paper import paper_data
from rosa.common.plot_style import canvas
from rosa.compare.grid import parse_method_entry
from rosa.compare.results import StudyResults
from rosa.errors import RosaError
from rosa.models.loading import short_name

OURS, PAPERS = "#0f6ba8", "#7a8794"
MICRO = "micro-average, %"
LEAST_REACH = 2.0  # points of accuracy on an axis: differences below one are not drawn large


@dataclass(frozen=True)
class Point:
    """A mean over runs in percent, with its standard deviation (0 for one run)."""

    mean: float
    spread: float = 0.0


def draw_figure3(study: StudyResults, model: str, picture: Path) -> None:
    """Accuracy over k_ratio, as a PNG.

    Raises:
        RosaError: no run of a k_ratio has finished.
    """
    ours = k_ratio_points(study, model)
    printed = {row["k_ratio"]: Point(row["micro"]) for row in paper_data("table4")["k_ratio"]}
    _need_runs(ours, "figure 3", study)
    title = "Figure 3: accuracy over k_ratio, the share of layers that are trained"
    with canvas(9.6, 4.2, title, _conditions(study, model)) as figure:
        for axes, name, points, colour in _halves(figure, printed, ours, model):
            _curve(axes, points, colour)
            axes.set(title=name, xlabel="k_ratio", ylabel=MICRO)
        figure.savefig(picture)


def draw_figure4(study: StudyResults, model: str, picture: Path) -> None:
    """RoSA and the paper's four variants as bars, as a PNG.

    Raises:
        RosaError: none of them has a finished run.
    """
    rows = paper_data("table4")["ablation"]
    printed = {row["title"]: Point(row["micro"]) for row in rows}
    ours = {row["title"]: p for row in rows if (p := point_of(study, model, row["method"]))}
    _need_runs(ours, "figure 4", study)
    title = "Figure 4: RoSA and its ablations"
    with canvas(9.6, 3.6, title, _conditions(study, model)) as figure:
        for axes, name, points, colour in _halves(figure, printed, ours, model):
            _bars(axes, points, colour)
            axes.set(title=name, xlabel=MICRO)
        figure.savefig(picture)


def k_ratio_points(study: StudyResults, model: str) -> dict[float, Point]:
    """Micro-averages by k_ratio: the grid's RoSA entries, without those that have no run yet."""
    shared = study.grid.get("recipe", {}).get("dls") or {}
    found = {}
    for entry in map(parse_method_entry, study.grid.get("methods", [])):
        if entry.recipe["method"] != "rosa":
            continue
        dls = {"k_ratio": 0.5} | shared | (entry.recipe.get("dls") or {})
        if value := point_of(study, model, entry.name):
            found[float(dls["k_ratio"])] = value
    return dict(sorted(found.items()))


def point_of(study: StudyResults, model: str, method: str) -> Point | None:
    """Mean and spread of a method's micro-averages over seeds; None without a run."""
    values = [run.micro() for run in study.select(model=model, method=method)]
    if not values:
        return None
    return Point(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _need_runs(points: Mapping[Any, Point], what: str, study: StudyResults) -> None:
    if not points:
        raise RosaError(f"{study.folder} has no finished run for {what}; see its failures")


def _conditions(study: StudyResults, model: str) -> str:
    """Below the title: what both halves are, and over how many runs ours is."""
    runs = study.select(model=model)
    seeds = sorted({run.seed for run in runs})
    sets = ", ".join(dict.fromkeys(run.train_set for run in runs))
    over = f"{len(seeds)} seeds ± standard deviation" if len(seeds) > 1 else "one seed"
    return (
        "left: as printed in the paper, trained on Commonsense15K; right: "
        f"{short_name(model)} trained on {sets}, {over}"
    )


def _halves(figure: Any, printed: Any, ours: Any, model: str) -> Sequence[tuple[Any, ...]]:
    left, right = figure.subplots(1, 2)
    return (
        (left, "the paper, Qwen2.5-7B", printed, PAPERS),
        (right, f"this study, {short_name(model)}", ours, OURS),
    )


def _curve(axes: Any, points: Mapping[float, Point], colour: str) -> None:
    from matplotlib.patheffects import withStroke

    x = list(points)
    means, spreads = [p.mean for p in points.values()], [p.spread for p in points.values()]
    axes.errorbar(x, means, spreads if any(spreads) else None, fmt="o-", color=colour, capsize=3)
    for ratio, p in points.items():
        axes.annotate(
            f"{p.mean:.1f}", (ratio, p.mean + p.spread), (0, 6), textcoords="offset points",
            ha="center", zorder=4, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    low = min(p.mean - p.spread for p in points.values())
    high = max(p.mean + p.spread for p in points.values())
    reach = max(high - low, LEAST_REACH)
    axes.set_ylim(max(low - 0.15 * reach, -0.05 * reach), high + 0.2 * reach)
    axes.set_xticks(x, [f"{ratio:.2f}" for ratio in x])
    axes.margins(x=0.08)
    axes.grid(axis="y", alpha=0.25)


def _bars(axes: Any, points: Mapping[str, Point], colour: str) -> None:
    names, means = list(points), [p.mean for p in points.values()]
    spreads = [p.spread for p in points.values()]
    shades = [colour] + [f"{colour}99"] * (len(names) - 1)  # RoSA itself in full colour
    axes.barh(
        names,
        means,
        xerr=spreads if any(spreads) else None,
        ecolor="#16202b",
        color=shades,
        height=0.62,
    )
    axes.invert_yaxis()
    reach = max(p.mean + p.spread for p in points.values()) or 1.0
    for row, p in enumerate(points.values()):
        axes.text(p.mean + p.spread + 0.015 * reach, row, f"{p.mean:.1f}", va="center")
    axes.set_xlim(0, 1.14 * reach)
