"""What an adapter changes: strengths before and after it, and the signal that RoAE adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rosa.common.plot_style import INK, SOFT, canvas
from rosa.errors import RosaError
from rosa.inspect.adapter_effect import Distribution
from rosa.inspect.draw import COLOURS, NAMES
from rosa.inspect.inspection import KINDS, Inspection, Kind
from rosa.inspect.maps import (
    ABOVE_MARKS,
    CHANGE,
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
    source_of,
)
from rosa.inspect.strength import Array

_NORM_COLOURS = (QUERY, KEY, "#3a7d44", "#7a4b9a")
_MARKERS = "osD^v"


def draw_comparison(inspection: Inspection, picture: str | Path, layer: int | None = None) -> None:
    """Writes a PNG: strengths before the adapter, after it, and the difference.

    By layer, and by head of one layer (the middle one for None). Raises RosaError for a base model
    and for a layer that it does not have.
    """
    if inspection.base_states is None:
        raise RosaError(f"{inspection.model} has no adapter, so there is no before and after")
    at = inspection.position(layer)
    shown, base = inspection.states[at], inspection.base_states[at]
    title = f"Activation strength before and after: {described(inspection)}"
    tall = 2.5 + min(2.0, 0.05 * len(inspection.states))
    with canvas(13.5, 4 * tall, title, conditions(inspection)) as figure:
        panels = figure.subplots(4, 3)
        for n, kind in enumerate(KINDS):
            by_layer = [inspection.by_layer(kind, base=True), inspection.by_layer(kind)]
            _triple(panels[n], inspection, at, by_layer, "layer", f"{NAMES[kind]} by layer")
            by_head = [getattr(base, kind), getattr(shown, kind)]
            what = f"{NAMES[kind]} of layer {shown.index}"
            _triple(panels[n + 2], inspection, at, by_head, "head", what)
        figure.savefig(picture)


def draw_adapter(inspection: Inspection, picture: str | Path) -> None:
    """Writes a PNG: the distribution of α·S by layer, how much each head moves, and the norms.

    Raises RosaError where no RoSA adapter was inspected.
    """
    if not inspection.effects:
        raise RosaError(f"{inspection.model} has no RoSA adapter whose signal could be drawn")
    with_norms = any(change for layer in inspection.norm_changes for change in layer.values())
    title = f"What the adapter does: {described(inspection)}"
    about = (
        f"α·S, the relative change of a modulated dimension, over {source_of(inspection)}. "
        f"Modulated: {len(inspection.effects[0].dimensions)} of "
        f"{inspection.states[0].layout.head_dim} dimensions of a head."
    )
    with canvas(13.5, 9.4 if with_norms else 7.0, title, about) as figure:
        ratios = (1, 1, 0.75) if with_norms else (1, 1)
        grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios, width_ratios=(1.5, 1))
        for row, kind in enumerate(KINDS):
            _bands(figure.add_subplot(grid[row, 0]), inspection, kind)
            _heads(figure, figure.add_subplot(grid[row, 1]), inspection, kind)
        if with_norms:
            _norms(figure.add_subplot(grid[2, :]), inspection)
        figure.savefig(picture)


def _triple(
    panels: Any, inspection: Inspection, at: int, grids: list[Array], rows: str, what: str
) -> None:
    """Before, after and difference of one kind of grid."""
    shown = inspection.states[at]
    numbers = inspection.layers if rows == "layer" else range(len(grids[0]))
    difference = grids[1] - grids[0]
    top, bar = colour_scale(grids, "RMS")
    most, change_bar = colour_scale([np.abs(difference)], "change")
    if "extend" in change_bar:
        change_bar["extend"] = "both"
    strength = {"cmap": STRENGTH, "vmin": 0, "vmax": top}
    change = {"cmap": CHANGE, "vmin": -most, "vmax": most}
    titles = (f"{what}: before", "after", "after − before")
    same_turn = alike([layer.frequencies for layer in inspection.states])
    for axes, grid, title, colours in zip(
        panels, [*grids, difference], titles, [strength, strength, change], strict=True
    ):
        heat_map(axes, grid, numbers, rows if axes is panels[0] else "", **colours)
        axes.set_title(title, pad=ABOVE_MARKS)
        dimension_axis(axes, shown, wavelengths=rows == "head" or same_turn)
        if rows == "head" or alike(inspection.low):
            mark_low(axes, inspection.low[at])
    for axes, legend in ((panels[1], bar), (panels[2], change_bar)):
        axes.figure.colorbar(axes.get_images()[0], ax=axes, **legend)


def _bands(axes: Any, inspection: Inspection, kind: Kind) -> None:
    """For each layer nested bars of percentiles of α·S, darker toward the median."""
    effects = inspection.effects
    spread: list[Distribution] = [getattr(effect, kind) for effect in effects]
    for width, low, high, opacity in ((0.8, 1, 99, 0.2), (0.62, 5, 95, 0.4), (0.44, 25, 75, 1)):
        bottom = np.array([d.percentiles[low] for d in spread])
        top = np.array([d.percentiles[high] for d in spread])
        label = f"{low} to {high} %"
        axes.bar(
            range(len(spread)), top - bottom, width, bottom, color=COLOURS[kind], alpha=opacity,
            label=label, lw=0,
        )  # fmt: skip
    medians = [d.percentiles[50] for d in spread]
    axes.plot(
        range(len(spread)), medians, "o", ms=3.6, mfc="white", mec=COLOURS[kind], mew=1.1,
        label="median",
    )  # fmt: skip
    axes.axhline(0, color=INK, lw=0.8)
    _layer_ticks(axes, [effect.index for effect in effects])
    axes.set_ylabel("α·S")
    axes.set_title(f"α·S on {NAMES[kind]}: percentiles")
    _legend(axes)
    ends = [d.percentiles[p] for d in spread for p in (1, 99)]
    room = 0.06 * (max(ends) - min(ends) or 1.0)
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _heads(figure: Any, axes: Any, inspection: Inspection, kind: Kind) -> None:
    """Layers x heads: the root mean square of α·S."""
    effects = inspection.effects
    rows = [getattr(effect, kind).per_head for effect in effects]
    grid = np.full((len(rows), max(map(len, rows))), np.nan)
    for i, row in enumerate(rows):
        grid[i, : len(row)] = row
    top, bar = colour_scale([grid], "RMS of α·S")
    indices = [effect.index for effect in effects]
    image = heat_map(axes, grid, indices, "layer", cmap=STRENGTH, vmin=0, vmax=top)
    step = max(1, grid.shape[1] // 8)
    axes.set_xticks(range(0, grid.shape[1], step))
    axes.set_xlabel("head")
    axes.set_title(f"which heads of the {NAMES[kind]} move")
    figure.colorbar(image, ax=axes, **bar)


def _norms(axes: Any, inspection: Inspection) -> None:
    """A line per norm: how far training has moved its scale, by layer."""
    names = dict.fromkeys(name for layer in inspection.norm_changes for name in layer)
    for n, name in enumerate(names):
        values = [100 * layer.get(name, np.nan) for layer in inspection.norm_changes]
        axes.plot(
            range(len(values)), values, marker=_MARKERS[n % len(_MARKERS)], ms=5, lw=1.4,
            color=_NORM_COLOURS[n % len(_NORM_COLOURS)], label=name,
        )  # fmt: skip
    _layer_ticks(axes, inspection.layers)
    axes.set_ylim(0, None)
    axes.set_ylabel("change, %")
    axes.set_title("the norms: ‖trained scale − scale‖ / ‖scale‖")
    _legend(axes)


def _legend(axes: Any) -> None:
    """Beside the title, where nothing is drawn."""
    axes.legend(
        ncols=4, frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


def _layer_ticks(axes: Any, indices: list[int]) -> None:
    step = max(1, len(indices) // 16)
    axes.set_xticks(range(0, len(indices), step), [str(i) for i in indices[::step]])
    axes.set_xlabel("layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=SOFT, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
