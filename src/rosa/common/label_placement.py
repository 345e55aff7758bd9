"""Labels next to the points of a scatter plot, without overlaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

GAPS = (3.0, 9.0, 16.0, 24.0, 34.0, 46.0, 60.0)  # points between a mark and its label
DIRECTIONS = 16
MARGIN = 1.0  # points between a label and what it may not cover


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

    No label covers another, a mark, or the `line` (its corners, with horizontal and vertical
    pieces between them), if possible. The axes must have their final place and scale.
    """
    pixel = axes.figure.dpi / 72
    to_pixels = axes.transData
    centers = [to_pixels.transform((mark.x, mark.y)) for mark in marks]
    radii = [mark.radius * pixel for mark in marks]
    margin = MARGIN * pixel
    taken = [_box(c, c, radius + margin) for c, radius in zip(centers, radii, strict=True)]
    taken += [_box(a, b, margin) for a, b in pairwise(map(to_pixels.transform, line))]
    area = axes.get_window_extent(renderer).extents[None]
    for mark, center, radius in zip(marks, centers, radii, strict=True):
        label = axes.annotate(
            mark.name, (mark.x, mark.y), (0, 0), textcoords="offset points", va="bottom",
            fontsize=8.5, zorder=4,
        )  # fmt: skip
        extent = label.get_window_extent(renderer)
        boxes = candidates(center, radius, (extent.width, extent.height), pixel)
        outside = extent.width * extent.height - overlaps(boxes, area)[:, 0]
        cost = 4 * outside + overlaps(boxes, np.array(taken)).sum(1)
        best = int(np.argmin(cost.round()))  # the nearest of the best
        box = boxes[best]
        taken.append(box)
        label.set_position((box[:2] - center) / pixel)
        if best >= DIRECTIONS:
            end = np.clip(center, box[:2], box[2:])
            ends = to_pixels.inverted().transform([center, end])
            axes.plot(*ends.T, color="#16202b", lw=0.6, zorder=3, scalex=False, scaley=False)


def candidates(
    center: np.ndarray, radius: float, size: tuple[float, float], pixel: float
) -> np.ndarray:
    """Boxes (left, bottom, right, top) around a mark, `DIRECTIONS` per gap, nearest first."""
    angles = 2 * math.pi * np.arange(DIRECTIONS) / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distances = radius + np.array(GAPS)[:, None, None] * pixel
    # The box touches the circle with the side that faces the mark.
    corners = center + distances * directions + np.array(size) * (directions - 1) / 2
    lower = corners.reshape(-1, 2)
    return np.hstack([lower, lower + np.array(size)])


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that each of `boxes` (n, 4) has in common with each of `others` (m, 4): (n, m)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def _box(one: np.ndarray, other: np.ndarray, margin: float) -> np.ndarray:
    """The box that has these two corners, and a margin around it."""
    return np.hstack([np.minimum(one, other) - margin, np.maximum(one, other) + margin])
