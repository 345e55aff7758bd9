"""The geometry of the scatter plots: accuracy against what it took.

They keep their shape, in units of a small view box, so that their text is readable on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rosa.common.formatting import format_count, format_duration
from rosa.report.html.axes import Tick, fit, fit_percent, is_wide
from rosa.report.html.costs import mean_cost, memory_cost
from rosa.report.html.tables import Block, Row

WIDTH, HEIGHT = 420, 310
LEFT, RIGHT, TOP, BOTTOM = 38, 406, 22, 274  # of the field that the dots lie in
LETTER, LINE = 6.3, 12.0  # width of a letter and height of a line of a label
DOT, LARGEST = 4.0, 10.0


@dataclass(frozen=True)
class Label:
    """Where a point's name stands; `line` leads to the point where the name is not beside it."""

    x: float
    y: float
    anchor: str
    line: bool


@dataclass(frozen=True)
class Point:
    """One method; `says` is the whole of it in words."""

    row: Row
    x: float
    y: float
    radius: float
    says: str
    label: Label | None  # None where there is no room left for it


@dataclass(frozen=True)
class Scatter:
    """Methods by some cost (across) and micro-average (up)."""

    title: str
    across: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    note: str = ""


@dataclass(frozen=True)
class _Datum:
    """A method's cost and accuracy, the radius of its dot, and what there is to say of it."""

    row: Row
    cost: float
    accuracy: float
    radius: float
    says: str


def budget_plot(block: Block) -> Scatter:
    """Micro-average against trainable parameters."""
    data = [
        _Datum(row, row.trainable, cell.mean, DOT, f"{row.trainable:,} trainable parameters")
        for row in block.rows
        if (cell := row.cells[block.micro]).values
    ]
    return _scatter("Accuracy and trainable parameters", "trainable parameters", data, format_count)


def cost_plot(block: Block) -> Scatter | None:
    """Micro-average against training time; the area of a dot is memory. None if not measured."""
    memory = memory_cost([run for row in block.rows for run in row.runs])
    peaks = [mean_cost(row.runs, memory.key) or 0.0 for row in block.rows]
    data = []
    for row, peak in zip(block.rows, peaks, strict=True):
        seconds, cell = mean_cost(row.runs, "train_seconds"), row.cells[block.micro]
        if seconds is None or not cell.values:
            continue
        radius = LARGEST * (peak / max(peaks)) ** 0.5 if peak else DOT
        says = f"trained in {format_duration(seconds)}"
        says += f", {memory.show(peak)} of {memory.title}" if peak else ""
        data.append(_Datum(row, seconds, cell.mean, radius, says))
    if not data:
        return None
    known = [peak for peak in peaks if peak]
    note = ""
    if known:
        spread = f"{memory.show(min(known))} to {memory.show(max(known))}"
        note = f"The larger the dot, the more {memory.title}: {spread}."
    return _scatter("Accuracy, time and memory", "training time", data, format_duration, note)


def _scatter(
    title: str, across: str, data: Sequence[_Datum], show: Callable[[float], str], note: str = ""
) -> Scatter:
    costs = [datum.cost for datum in data]
    x_axis = fit(costs, log=is_wide(costs), margin=0.1)
    y_axis, y_found = fit_percent([datum.accuracy for datum in data], margin=0.1)
    places = [(_x(x_axis.at(d.cost)), _y(y_axis.at(d.accuracy)), d.radius) for d in data]
    labels = place_labels([datum.row.title for datum in data], places)
    points = tuple(
        Point(d.row, x, y, radius, f"{d.row.title}: {d.accuracy:.1f} %, {d.says}", label)
        for d, (x, y, radius), label in zip(data, places, labels, strict=True)
    )
    x_ticks = tuple(Tick(_x(tick.at), show(tick.value)) for tick in x_axis.ticks(5))
    y_ticks = tuple(Tick(_y(tick.at), tick.text) for tick in y_found)
    return Scatter(title, across, points, x_ticks, y_ticks, note)


def _x(at: float) -> float:
    return LEFT + at * (RIGHT - LEFT)


def _y(at: float) -> float:
    return BOTTOM - at * (BOTTOM - TOP)


Box = tuple[float, float, float, float]
Dot = tuple[float, float, float]  # x, y, radius


def place_labels(names: Sequence[str], dots: Sequence[Dot]) -> list[Label | None]:
    """A place for every name that covers no dot and no other name; None where there is none.

    Tried in turn: right, left, above, below, then further off with a line to the dot. Dots with
    little room around them choose first.
    """
    taken: list[Box] = [(x - r, y - r, x + r, y + r) for x, y, r in dots]
    labels: list[Label | None] = [None] * len(names)
    crowd = [sum(_near(dot, other) for other in dots) for dot in dots]
    for i in sorted(range(len(names)), key=lambda i: -crowd[i]):
        for label in _candidates(*dots[i]):
            box = label_box(label, names[i])
            if _inside(box) and not any(overlap(box, other) for other in taken):
                labels[i] = label
                taken.append(box)
                break
    return labels


def _candidates(x: float, y: float, radius: float) -> list[Label]:
    gap = radius + 3
    beside = [
        Label(x + gap, y + 3.5, "start", False),
        Label(x - gap, y + 3.5, "end", False),
        Label(x, y - gap - 1, "middle", False),
        Label(x, y + gap + 9, "middle", False),
    ]
    further = [
        Label(x + side * (gap + out), y + dy + 3.5, "start" if side > 0 else "end", True)
        for out in (8, 20, 36)
        for dy in (-12, 12, -24, 24, -40, 40)
        for side in (1, -1)
    ]
    return beside + further


def label_box(label: Label, name: str) -> Box:
    """The rectangle that a label fills: left, top, right, bottom."""
    width = LETTER * len(name)
    left = label.x - {"start": 0.0, "end": width, "middle": width / 2}[label.anchor]
    return (left, label.y - LINE + 2, left + width, label.y + 2)


def _inside(box: Box) -> bool:
    left, top, right, bottom = box
    return left > LEFT and top > TOP - 6 and right < WIDTH and bottom < BOTTOM


def overlap(a: Box, b: Box) -> bool:
    """Whether two rectangles have a point in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _near(a: Dot, b: Dot) -> bool:
    return abs(a[0] - b[0]) < 70 and abs(a[1] - b[1]) < 20
