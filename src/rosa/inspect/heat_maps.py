"""Heat maps over a head's dimensions, with their color scale, ticks and low-frequency marks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rosa.common.formatting import consecutive_runs, format_count
from rosa.common.plot_style import INK
from rosa.inspect.capture import LayerStates
from rosa.inspect.strength import Array, pair_of_dimension

SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # perceptually uniform; white at zero
MARK_HEIGHT = 22  # points between a map and its title: room for the brackets
_CLIP = 97  # percentile; a few massive dimensions would leave the rest of a map dark


def color_scale(grids: Sequence[Array], name: str) -> tuple[float, dict[str, Any]]:
    """The value of the brightest color, and the color bar's label and arrow.

    Where few values are far larger than the others, the scale ends below them and says so.
    """
    values = np.concatenate([grid[np.isfinite(grid)] for grid in grids])
    top, clip = float(values.max()), float(np.percentile(values, _CLIP))
    bar: dict[str, Any] = {"label": name, "fraction": 0.05, "pad": 0.015}
    if top > 2 * clip > 0:
        return clip, bar | {"extend": "max", "label": f"{name} (largest {top:.3g})"}
    return top or 1.0, bar


def heat_map(axes: Any, grid: Array, rows: Sequence[int], what: str, **colors: Any) -> Any:
    """A grid (rows, columns), its first row at the bottom, with its rows' own numbers."""
    image = axes.imshow(
        grid, aspect="auto", origin="lower", interpolation="nearest", rasterized=True, **colors
    )
    step = _step(len(rows), 9)
    axes.set_yticks(range(0, len(rows), step), [str(r) for r in rows[::step]])
    axes.set_ylabel(what)
    axes.tick_params(length=2.5, width=0.7)
    return image


def dimension_axis(axes: Any, layer: LayerStates, *, wavelengths: bool = True) -> None:
    """Ticks with a dimension's number and, below it, its wavelength in tokens."""
    size, pairs = layer.layout.head_dim, pair_of_dimension(layer.layout)
    ticks = range(0, size, _step(size, 8))
    labels = [str(d) for d in ticks]
    if wavelengths:
        turns = [0.0 if (pair := pairs[d]) is None else layer.frequencies[pair] for d in ticks]
        lengths = [format_count(2 * math.pi / turn) if turn else "–" for turn in turns]
        labels = [f"{d}\n{length}" for d, length in zip(ticks, lengths, strict=True)]
    axes.set_xticks(list(ticks), labels)
    axes.set_xlabel("dimension of a head" + (" / wavelength in tokens" if wavelengths else ""))


def mark_low(axes: Any, low: Sequence[int]) -> None:
    """A bracket over each run of low-frequency dimensions, and a line at each of its ends."""
    from matplotlib.transforms import ScaledTranslation

    last = axes.get_images()[0].get_array().shape[1] - 1
    frame = axes.get_xaxis_transform()
    feet, back, text = (
        frame + ScaledTranslation(0, points / 72, axes.figure.dpi_scale_trans)
        for points in (2, 7, 9)
    )
    line = {"color": INK, "lw": 1.3}
    for start, end in consecutive_runs(low):
        edges = (start - 0.5, end + 0.5)
        axes.plot(edges, [1, 1], transform=back, clip_on=False, solid_capstyle="projecting", **line)
        for edge in edges:
            axes.annotate(
                "", (edge, 1), (edge, 1), xycoords=feet, textcoords=back,
                arrowprops={"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, **line},
            )  # fmt: skip
            if 0 < edge < last:
                axes.axvline(edge, color="white", lw=1.2)
                axes.axvline(edge, color=INK, lw=0.7, ls=(0, (3, 2)))
        axes.text(
            sum(edges) / 2, 1, "low frequency", transform=text, ha="center", va="bottom", size=7.5
        )


def all_equal(values: Sequence[Any]) -> bool:
    return all(np.array_equal(value, values[0]) for value in values)


def _step(count: int, at_most: int) -> int:
    """The distance between ticks: a power of two that gives no more than `at_most`."""
    return 2 ** max(0, math.ceil(math.log2(count / at_most)))
