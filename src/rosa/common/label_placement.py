"""Labels beside the points of a scatter plot, none upon another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

GAPS = (3.0, 9.0, 16.0, 24.0, 34.0, 46.0, 60.0)  # points between a mark and its label
DIRECTIONS = 16
MARGIN = 1.0  # points that a label keeps away from what it may not cover


@dataclass(frozen=True)
class Mark:
    """A point of the plot with its name, in data coordinates; `radius` in points."""

    x: float
    y: float
    radius: float
    name: str


def place_labels(
    axes: Any, renderer: Any, marks: Sequence[Mark], line: Sequence[tuple[float, float]] = ()
) -> None:
    """Write each name near its mark, in the order given; a thin line leads to one further off.

    No label covers another, a mark, or the `line` (its corners, with level and upright pieces
    between them), if that can be. The axes must have their final place and scale.
    """
    from matplotlib.patheffects import withStroke

    pixel = axes.figure.dpi / 72
    bounds = axes.get_window_extent(renderer)
    area: Box = (bounds.x0, bounds.y0, bounds.x1, bounds.y1)
    centres = [tuple(axes.transData.transform((mark.x, mark.y))) for mark in marks]
    taken = [
        _grown((*centre, *centre), (mark.radius + MARGIN) * pixel)
        for centre, mark in zip(centres, marks, strict=True)
    ]
    corners = [tuple(axes.transData.transform(corner)) for corner in line]
    taken += [_grown(_around(*ends), MARGIN * pixel) for ends in pairwise(corners)]
    for centre, mark in zip(centres, marks, strict=True):
        label = axes.annotate(
            mark.name, (mark.x, mark.y), (0, 0), textcoords="offset points", va="bottom",
            fontsize=8.5, zorder=4, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
        size = label.get_window_extent(renderer)
        box, gap = min(
            candidates(centre, mark.radius * pixel, (size.width, size.height), pixel),
            key=lambda found: (round(_overlap(found[0], taken, area)), found[1]),
        )
        taken.append(box)
        label.set_position(((box[0] - centre[0]) / pixel, (box[1] - centre[1]) / pixel))
        if gap > GAPS[0]:
            _lead(axes, centre, box)


def candidates(
    centre: tuple[float, float], radius: float, size: tuple[float, float], pixel: float
) -> Iterator[tuple[Box, float]]:
    """Boxes around a mark with the gap between, in points; nearest first, right first."""
    for gap in GAPS:
        for turn in range(DIRECTIONS):
            angle = 2 * math.pi * turn / DIRECTIONS
            across, up = math.cos(angle), math.sin(angle)
            # The box touches the circle with the side that faces the mark.
            left = centre[0] + (radius + gap * pixel) * across + size[0] * (across - 1) / 2
            bottom = centre[1] + (radius + gap * pixel) * up + size[1] * (up - 1) / 2
            yield (left, bottom, left + size[0], bottom + size[1]), gap


def _overlap(box: Box, taken: Sequence[Box], area: Box) -> float:
    """Pixels of a box that others have, or that are outside the axes."""
    outside = (box[2] - box[0]) * (box[3] - box[1]) - shared(box, area)
    return 4 * outside + sum(shared(box, other) for other in taken)


def shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _around(one: tuple[float, float], other: tuple[float, float]) -> Box:
    """The box that has these two corners."""
    (x0, x1), (y0, y1) = sorted((one[0], other[0])), sorted((one[1], other[1]))
    return x0, y0, x1, y1


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _lead(axes: Any, centre: tuple[float, float], box: Box) -> None:
    """A thin line from a mark to the nearest place of its label's box."""
    end = (min(max(centre[0], box[0]), box[2]), min(max(centre[1], box[1]), box[3]))
    inverse = axes.transData.inverted()
    (x0, y0), (x1, y1) = inverse.transform(centre), inverse.transform(end)
    axes.plot([x0, x1], [y0, y1], color="#16202b", lw=0.6, zorder=3, scalex=False, scaley=False)
