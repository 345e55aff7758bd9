"""The paper's Figure 1 on any model: where the strong queries and keys are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosa.common.plot_style import INK, SOFT, canvas
from rosa.inspect.inspection import KINDS, Inspection, Kind
from rosa.inspect.maps import (
    ABOVE_MARKS,
    KEY,
    QUERY,
    STRENGTH,
    alike,
    colour_scale,
    conditions,
    described,
    dimension_axis,
    heat_map,
    mark_low,
)

NAMES = {"query": "queries", "key": "keys"}
COLOURS = {"query": QUERY, "key": KEY}


def draw_figure1(inspection: Inspection, picture: str | Path, layer: int | None = None) -> None:
    """Writes a PNG: strength of queries and keys by head, by layer, and the low frequencies' share.

    `layer` is the one whose heads are shown, the middle one for None. Raises RosaError for a layer
    that the model does not have.
    """
    at = inspection.position(layer)
    height = 3.2 + min(3.0, 0.09 * len(inspection.states))
    title = f"Activation strength of queries and keys: {described(inspection)}"
    with canvas(13.5, 2 * height, title, conditions(inspection)) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.36))
        for row, kind in enumerate(KINDS):
            panels = [figure.add_subplot(grid[row, column]) for column in range(3)]
            _strength_row(figure, panels, inspection, kind, at)
            _share_bars(panels[2], inspection, kind)
        figure.savefig(picture)


def _strength_row(
    figure: Any, panels: list[Any], inspection: Inspection, kind: Kind, at: int
) -> None:
    """Heads x dimension of one layer, and layers x dimension, on one colour scale."""
    shown = inspection.states[at]
    by_head, by_layer = getattr(shown, kind), inspection.by_layer(kind)
    top, bar = colour_scale([by_head, by_layer], "RMS")
    colours = {"cmap": STRENGTH, "vmin": 0, "vmax": top}
    heat_map(panels[0], by_head, range(len(by_head)), "head", **colours)
    image = heat_map(panels[1], by_layer, inspection.layers, "layer", **colours)
    panels[0].set_title(f"{NAMES[kind]} of layer {shown.index}, by head", pad=ABOVE_MARKS)
    panels[1].set_title(f"{NAMES[kind]} by layer, all heads", pad=ABOVE_MARKS)
    same_turn = alike([layer.frequencies for layer in inspection.states])
    dimension_axis(panels[0], shown)
    dimension_axis(panels[1], shown, wavelengths=same_turn)
    mark_low(panels[0], inspection.low[at])
    if alike(inspection.low):
        mark_low(panels[1], inspection.low[at])
    figure.colorbar(image, ax=panels[1], **bar)


def _share_bars(axes: Any, inspection: Inspection, kind: Kind) -> None:
    """A bar per layer: the share of energy in the low-frequency dimensions, and that of chance."""
    shares = [100 * share for share in inspection.shares(kind)]
    even = [100 * share for share in inspection.expected_shares()]
    rows = range(len(shares))
    axes.barh(rows, shares, height=0.72, color=COLOURS[kind])
    axes.set_title("energy at low\nfrequency", pad=ABOVE_MARKS)
    axes.set_ylim(-0.5, len(shares) - 0.5)
    axes.set_xlim(0, min(100.0, 1.2 * max([*shares, *even])))
    axes.set_yticks([])
    if alike(even):
        axes.axvline(even[0], color=INK, lw=1.1, ls=(0, (4, 2)))
        axes.text(
            even[0], 1.02, f"even: {even[0]:.0f}", transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", size=7.5,
        )  # fmt: skip
    axes.set_xlabel("% of Σ z²")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=0.7, color=SOFT)
