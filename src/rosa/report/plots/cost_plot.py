"""Accuracy against what it cost, one point per method: is more time or memory worth it?

    draw_costs([CostPoint("LoRA", 71.2, seconds=84, peak_bytes=64e7, trainable=98_304)], "c.png")

A panel each for trainable parameters, training time and peak memory. Color and shape tell groups
apart; the line is the Pareto front: no point on it is beaten in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.common.formatting import format_count
from rosa.common.label_placement import Mark, place_labels
from rosa.common.plot_style import GRID, INK, SOFT, percent_axis, styled_figure
from rosa.errors import RosaError

# Label, color and shape; Okabe and Ito's colors, which are distinct in every kind of color vision.
GROUPS = {
    "ours": ("RoSA", "#d55e00", "o"),
    "baseline": ("baselines", "#0072b2", "s"),
    "variant": ("variants", SOFT, "D"),
}
OTHERS = (("#009e73", "^"), ("#cc79a7", "v"), ("#56b4e9", "P"), ("#e69f00", "X"))
FRONT = {"color": INK, "alpha": 0.35, "lw": 1.5}
AREA = 46.0  # of a mark, in square points
LOG_RATIO = 10  # costs that differ by more than this factor are drawn on a logarithmic axis


@dataclass(frozen=True)
class CostPoint:
    """One method, or one run.

    Attributes:
        accuracy: in percent.
        seconds: of training; None where not measured.
        peak_bytes: memory at its peak, of device or host; None where not measured.
        trainable: parameters.
        group: what shares a color: `ours`, `baseline`, `variant`, or any other name.
    """

    name: str
    accuracy: float
    seconds: float | None
    peak_bytes: float | None
    trainable: int
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """One axis of costs: how to read it off a point, its label, its units, and its ticks."""

    cost: Callable[[CostPoint], float | None]
    label: str
    units: tuple[tuple[float, str], ...]  # largest first
    tick: Callable[[float], str] = "{:g}".format


TIMES = ((3600.0, " (hours)"), (60.0, " (minutes)"), (1.0, " (seconds)"))
SIZES = ((1e9, " (GB)"), (1e6, " (MB)"), (1e3, " (kB)"), (1.0, " (bytes)"))
PANELS = (
    Panel(lambda point: point.trainable, "trainable parameters", ((1.0, ""),), format_count),
    Panel(lambda point: point.seconds, "training time", TIMES),
    Panel(lambda point: point.peak_bytes, "peak memory", SIZES),
)


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Positions of the points that no other beats, cheapest first.

    One point beats another that costs at least as much and is at most as accurate, and differs.

    >>> pareto_front([1, 2, 2, 3], [50, 70, 60, 65])
    [0, 1]
    """
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i])):
        best = front[-1] if front else None
        ties = best is not None and (costs[i], accuracies[i]) == (costs[best], accuracies[best])
        if best is None or accuracies[i] > accuracies[best] or ties:
            front.append(i)
    return front


def measured_panels(points: Sequence[CostPoint]) -> list[Panel]:
    """The panels that have a point."""
    return [panel for panel in PANELS if any(panel.cost(point) is not None for point in points)]


def draw_costs(points: Sequence[CostPoint], path: str | Path) -> None:
    """Write the picture to `path` (PNG, SVG or PDF by its name).

    Raises:
        RosaError: there is no point.
    """
    if not points:
        raise RosaError("there is no point to draw; give at least one CostPoint")
    panels = measured_panels(points)
    with styled_figure(0.8 + 4.8 * len(panels), 5.0, "constrained") as figure:
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        draw_legend(figure, _styles(points), FRONT | {"label": "Pareto front (outlined)"})
        figure.suptitle("Accuracy and its cost: better is up and to the left", x=0.5)
        grid[0].set_ylabel("accuracy (%)")
        draw_panels(figure, dict(zip(grid, panels, strict=True)), points)
        figure.savefig(path)


def draw_panels(figure: Any, panels: dict[Any, Panel], points: Sequence[CostPoint]) -> None:
    """Draw the panels into their axes; the labels last, since layout must be final for them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = {axes: _draw_panel(axes, panel, points) for axes, panel in panels.items()}
    if figure.get_layout_engine():
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes, (marks, line) in drawn.items():
        place_labels(axes, renderer, marks, line)


def _draw_panel(
    axes: Any, panel: Panel, points: Sequence[CostPoint]
) -> tuple[list[Mark], list[tuple[float, float]]]:
    """Draws the points that have this cost; returns their marks, and the corners of the front."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [(cost, p) for p in points if (cost := panel.cost(p)) is not None]
    largest = max(cost for cost, _ in known)
    unit, unit_name = next((u for u in panel.units if u[0] <= largest), panel.units[-1])
    costs, accuracies = [cost / unit for cost, _ in known], [p.accuracy for _, p in known]
    front = pareto_front(costs, accuracies)
    line = [(costs[front[0]], accuracies[front[0]])]
    for i in front[1:]:
        line += [(costs[i], line[-1][1]), (costs[i], accuracies[i])]
    axes.plot(*zip(*line, strict=True), **FRONT, zorder=1)
    styles = _styles(points)
    for i, (_, point) in enumerate(known):
        _, color, shape = styles[point.group]
        axes.scatter(
            costs[i], accuracies[i], s=AREA, color=color, marker=shape, linewidth=0.9, zorder=2,
            alpha=0.95 if i in front else 0.5, edgecolor=INK if i in front else "none",
            gid=f"{point.name}: {point.accuracy:.1f} %, {costs[i]:.4g}{unit_name}",
        )  # fmt: skip
    if min(costs) > 0 and max(costs) > LOG_RATIO * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: panel.tick(x)))
    axes.set_xlabel(panel.label + unit_name)
    axes.margins(x=0.14)
    percent_axis(axes, "y", [point.accuracy for point in points])
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    order = [*front, *(i for i in range(len(known)) if i not in front)]
    return [Mark(costs[i], accuracies[i], AREA**0.5 / 2, known[i][1].name) for i in order], line


def _styles(points: Sequence[CostPoint]) -> dict[str, tuple[str, str, str]]:
    """Label, color and shape of each group that has a point."""
    groups = list(dict.fromkeys(point.group for point in points))
    others = [group for group in groups if group not in GROUPS]
    added = {group: (group, *OTHERS[i % len(OTHERS)]) for i, group in enumerate(others)}
    return {group: style for group, style in (GROUPS | added).items() if group in groups}


def draw_legend(figure: Any, styles: Mapping[str, tuple[str, str, str]], line: Any) -> None:
    """Below the plots: the groups, where there are several, and a line."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], ls="", color=color, marker=shape, label=label)
        for label, color, shape in styles.values()
        if len(styles) > 1
    ]
    marks += [Line2D([], [], **line)] if line else []
    figure.legend(handles=marks, loc="outside lower center", ncols=8, frameon=False)
