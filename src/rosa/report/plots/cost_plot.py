"""Accuracy against what it cost, one point per method: is more time or memory worth it?

    draw_costs([CostPoint("LoRA", 71.2, seconds=84, peak_bytes=64e7, trainable=98_304)], "c.png")

A panel for training time and one for peak memory. Colour and shape tell groups apart, the area of a
point its trainable parameters; the line is the Pareto front: no point on it is beaten in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.common.formatting import BYTE_UNITS, DURATION_UNITS
from rosa.common.label_placement import Mark, place_labels
from rosa.errors import RosaError

# Okabe and Ito's colours, which every kind of colour vision tells apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5b6b7a")
SHAPES = "osD^vPX"
SMALLEST, LARGEST = 26.0, 230.0  # areas in square points
FAR_APART = 10  # costs that differ by more than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class CostPoint:
    """One method, or one run.

    Attributes:
        accuracy: in percent.
        seconds: of training; None where not measured.
        peak_bytes: memory at its peak, of device or host; None where not measured.
        trainable: parameters.
        group: what shares a colour: a model, a family of methods, ...
    """

    name: str
    accuracy: float
    seconds: float | None
    peak_bytes: float | None
    trainable: int
    group: str = ""


@dataclass(frozen=True)
class Panel:
    """One axis of costs: how to read it off a point, its label, and its units, largest first."""

    cost: Callable[[CostPoint], float | None]
    label: str
    units: tuple[tuple[float, str], ...]


PANELS = (
    Panel(lambda point: point.seconds, "training time", DURATION_UNITS),
    Panel(lambda point: point.peak_bytes, "peak memory", BYTE_UNITS),
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
        twins = best is not None and (costs[i], accuracies[i]) == (costs[best], accuracies[best])
        if best is None or accuracies[i] > accuracies[best] or twins:
            front.append(i)
    return front


def draw_costs(points: Sequence[CostPoint], path: str | Path) -> None:
    """Write the picture to `path` (PNG, SVG or PDF by its name).

    Raises:
        RosaError: no point has a measured cost.
    """
    from matplotlib import rc_context

    panels = [p for p in PANELS if any(p.cost(point) is not None for point in points)]
    if not panels:
        raise RosaError("there is no measured cost to draw; train with `rosa train` first")
    with rc_context({"text.parse_math": False}):  # names are a person's words
        _draw(points, panels, path)


def _draw(points: Sequence[CostPoint], panels: Sequence[Panel], path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(1.2 + 5.4 * len(panels), 5.0), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    drawn = [_draw_panel(a, p, points) for a, p in zip(rows, panels, strict=True)]
    rows[0].set_ylabel("accuracy (%)")
    figure.legend(handles=_legend(points), loc="outside lower center", ncols=8, frameon=False)
    figure.suptitle("Accuracy and its cost: better is up and to the left", fontsize=11, x=0.5)
    canvas.draw()
    figure.set_layout_engine("none")  # labels go into the picture as it is now
    for axes, (marks, line) in zip(rows, drawn, strict=True):
        place_labels(axes, canvas.get_renderer(), marks, line)
    figure.savefig(path, dpi=150)


def _draw_panel(
    axes: Any, panel: Panel, points: Sequence[CostPoint]
) -> tuple[list[Mark], list[tuple[float, float]]]:
    """Draws the points that have this cost; gives them, the front first, and the front's line."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    known = [(cost, p) for p in points if (cost := panel.cost(p)) is not None]
    most = max(cost for cost, _ in known)
    unit, unit_name = next((unit for unit in panel.units if unit[0] <= most), panel.units[-1])
    costs, accuracies = [cost / unit for cost, _ in known], [p.accuracy for _, p in known]
    front = pareto_front(costs, accuracies)
    line = [(costs[front[0]], accuracies[front[0]])]
    for i in front[1:]:
        line += [(costs[i], line[-1][1]), (costs[i], accuracies[i])]
    axes.plot(*zip(*line, strict=True), color="#16202b", alpha=0.35, lw=1.5, zorder=1)
    looks, largest = _looks(points), max(p.trainable for p in points)
    for i, (_, point) in enumerate(known):
        colour, shape = looks[point.group]
        axes.scatter(
            costs[i],
            accuracies[i],
            s=_area(point.trainable, largest),
            color=colour,
            marker=shape,
            alpha=0.95 if i in front else 0.5,
            edgecolor="#16202b" if i in front else "none",
            linewidth=0.9,
            zorder=2,
        )
    if min(costs) > 0 and max(costs) > FAR_APART * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"{panel.label} ({unit_name})")
    axes.margins(x=0.14, y=0.12)
    axes.grid(alpha=0.2)
    order = [*front, *(i for i in range(len(known)) if i not in front)]
    radii = [_area(p.trainable, largest) ** 0.5 / 2 for _, p in known]
    return [Mark(costs[i], accuracies[i], radii[i], known[i][1].name) for i in order], line


def _looks(points: Sequence[CostPoint]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each group."""
    groups = list(dict.fromkeys(point.group for point in points))
    return {g: (COLOURS[i % len(COLOURS)], SHAPES[i % len(SHAPES)]) for i, g in enumerate(groups)}


def _area(trainable: int, largest: int) -> float:
    return SMALLEST + (LARGEST - SMALLEST) * trainable / max(largest, 1)


def _legend(points: Sequence[CostPoint]) -> list[Any]:
    """Groups (where there are several), sizes and the line."""
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, shape: str, area: float) -> Line2D:
        return Line2D(
            [], [], ls="", color=colour, marker=shape, ms=area**0.5, mec="none", label=label
        )

    looks = _looks(points)
    groups = [mark(g, *look, 60) for g, look in looks.items() if len(looks) > 1]
    largest = max(p.trainable for p in points)
    sizes = [
        mark(f"{count:,} trainable", "#9aa5b1", "o", _area(count, largest))
        for count in sorted({min(p.trainable for p in points), largest})
    ]
    front = Line2D([], [], color="#16202b", alpha=0.35, lw=1.5, label="Pareto front (outlined)")
    return [*groups, *sizes, front]
