"""The pictures of an inspection: the paper's Figure 1, before and after, and what RoAE does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosa.common.formatting import consecutive_runs, format_count
from rosa.common.plot_style import INK, SOFT, canvas
from rosa.errors import RosaError
from rosa.inspect.adapter_effect import SignalStatistics
from rosa.inspect.capture import LayerStates
from rosa.inspect.inspection import QUERY_AND_KEY, Inspection, QueryOrKey
from rosa.inspect.strength import Array, pair_of_dimension, stack_rows
from rosa.models.loading import short_name

NAMES = {"query": "queries", "key": "keys"}
COLORS = {"query": "#0f6ba8", "key": "#b4530a"}  # distinct in every kind of color vision
_NORM_COLORS = (*COLORS.values(), "#3a7d44", "#7a4b9a")
_MARKERS = "osD^v"
SEQUENTIAL, DIVERGING = "viridis", "RdBu_r"  # perceptually uniform; white at zero
MARK_HEIGHT = 22  # points between a map and its title: room for the brackets
_CLIP = 97  # percentile; a few massive dimensions would leave the rest of a map dark


def draw_figure1(inspection: Inspection, picture: str | Path, layer: int | None = None) -> None:
    """Writes a PNG: strength of queries and keys by head, by layer, and the low frequencies' share.

    `layer` is the one whose heads are drawn, the middle one for None. Raises RosaError for a layer
    that the model does not have.
    """
    at = inspection.position(layer)
    height = 3.2 + min(3.0, 0.09 * len(inspection.states))
    title = f"Activation strength of queries and keys: {_model_title(inspection)}"
    with canvas(13.5, 2 * height, title, _conditions(inspection)) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.36))
        for row, kind in enumerate(QUERY_AND_KEY):
            panels = [figure.add_subplot(grid[row, column]) for column in range(3)]
            by_head = getattr(inspection.states[at], kind)
            by_layer = inspection.by_layer(kind)
            top, bar = color_scale([by_head, by_layer], "RMS")
            colors = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}
            what = f"{NAMES[kind]} of layer {inspection.states[at].index}, by head"
            _map(panels[0], inspection, at, by_head, "head", what, **colors)
            what = f"{NAMES[kind]} by layer, all heads"
            image = _map(panels[1], inspection, at, by_layer, "layer", what, **colors)
            figure.colorbar(image, ax=panels[1], **bar)
            _share_bars(panels[2], inspection, kind)
        figure.savefig(picture)


def draw_comparison(inspection: Inspection, picture: str | Path, layer: int | None = None) -> None:
    """Writes a PNG: strengths before the adapter, after it, and the difference.

    By layer, and by head of one layer (the middle one for None). Raises RosaError for a base model
    and for a layer that it does not have.
    """
    if inspection.base_states is None:
        raise RosaError(f"{inspection.model} has no adapter, so there is no before and after")
    at = inspection.position(layer)
    shown, base = inspection.states[at], inspection.base_states[at]
    title = f"Activation strength before and after: {_model_title(inspection)}"
    row_height = 2.5 + min(2.0, 0.05 * len(inspection.states))
    with canvas(13.5, 4 * row_height, title, _conditions(inspection)) as figure:
        panels = figure.subplots(4, 3)
        for n, kind in enumerate(QUERY_AND_KEY):
            by_layer = (inspection.by_layer(kind, base=True), inspection.by_layer(kind))
            _before_after(panels[n], inspection, at, by_layer, "layer", f"{NAMES[kind]} by layer")
            by_head = (getattr(base, kind), getattr(shown, kind))
            what = f"{NAMES[kind]} of layer {shown.index}"
            _before_after(panels[n + 2], inspection, at, by_head, "head", what)
        figure.savefig(picture)


def draw_adapter(inspection: Inspection, picture: str | Path) -> None:
    """Writes a PNG: the distribution of α·S by layer, how much each head changes, and the norms.

    Raises RosaError where no RoSA adapter was inspected.
    """
    if not inspection.effects:
        raise RosaError(f"{inspection.model} has no RoSA adapter whose signal could be drawn")
    with_norms = any(change for layer in inspection.norm_changes for change in layer.values())
    title = f"What the adapter does: {_model_title(inspection)}"
    about = (
        f"α·S, the relative change of a modulated dimension, over {_text_title(inspection)}. "
        f"Modulated: {len(inspection.effects[0].dimensions)} of "
        f"{inspection.states[0].layout.head_dim} dimensions of a head."
    )
    with canvas(13.5, 9.4 if with_norms else 7.0, title, about) as figure:
        ratios = (1, 1, 0.75) if with_norms else (1, 1)
        grid = figure.add_gridspec(len(ratios), 2, height_ratios=ratios, width_ratios=(1.5, 1))
        for row, kind in enumerate(QUERY_AND_KEY):
            _percentile_bars(figure.add_subplot(grid[row, 0]), inspection, kind)
            _head_map(figure.add_subplot(grid[row, 1]), inspection, kind)
        if with_norms:
            _norm_lines(figure.add_subplot(grid[2, :]), inspection)
        figure.savefig(picture)


def _model_title(inspection: Inspection) -> str:
    """`demo (RoSA adapter on rosa-tiny)`."""
    name = short_name(inspection.model)
    if inspection.method is None:
        return name
    method = {"ROSA": "RoSA", "DYPAM": "DyPAM"}.get(inspection.method, inspection.method)
    return f"{name} ({method} adapter on {short_name(inspection.base)})"


def _text_title(inspection: Inspection) -> str:
    """`5,559 tokens of wikitext`."""
    source = inspection.texts.source
    name = source if source.startswith("the ") else short_name(source)
    return f"{inspection.texts.tokens:,} tokens of {name}"


def _conditions(inspection: Inspection) -> str:
    return (
        f"Root mean square over {_text_title(inspection)}, after rotation. "
        f"Low frequency: the slowest {100 * inspection.r_low:g} % of the pairs."
    )


def _map(
    axes: Any, inspection: Inspection, at: int, grid: Array, rows: str, title: str, **colors: Any
) -> Any:
    """Heads of a layer, or layers, x dimension, with the low frequencies marked.

    Wavelengths and marks are left out where they differ between the layers of a map.
    """
    layer = inspection.states[at]
    numbers = inspection.layers if rows == "layer" else range(len(grid))
    image = heat_map(axes, grid, numbers, rows, **colors)
    axes.set_title(title, pad=MARK_HEIGHT)
    by_head, states = rows == "head", inspection.states
    dimension_axis(axes, layer, wavelengths=by_head or all_equal([s.frequencies for s in states]))
    if by_head or all_equal(inspection.low):
        mark_low(axes, inspection.low[at])
    return image


def _share_bars(axes: Any, inspection: Inspection, kind: QueryOrKey) -> None:
    """A bar per layer: the share of energy at low frequency; a line: that of an even spread."""
    shares = [100 * share for share in inspection.energy_shares(kind)]
    even = [100 * share for share in inspection.dimension_shares()]
    axes.barh(range(len(shares)), shares, height=0.72, color=COLORS[kind])
    axes.set_title("energy at low\nfrequency", pad=MARK_HEIGHT)
    axes.set_ylim(-0.5, len(shares) - 0.5)
    axes.set_xlim(0, min(100.0, 1.2 * max([*shares, *even])))
    axes.set_yticks([])
    if all_equal(even):
        axes.axvline(even[0], color=INK, lw=1.1, ls=(0, (4, 2)))
        axes.text(
            even[0], 1.02, f"even: {even[0]:.0f}", transform=axes.get_xaxis_transform(),
            ha="center", va="bottom", size=7.5,
        )  # fmt: skip
    axes.set_xlabel("% of Σ z²")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5, width=0.7, color=SOFT)


def _before_after(
    panels: Any, inspection: Inspection, at: int, grids: tuple[Array, Array], rows: str, what: str
) -> None:
    """Before, after and difference of one kind of grid."""
    before, after = grids
    top, bar = color_scale(grids, "RMS")
    most, change_bar = color_scale([np.abs(after - before)], "change")
    if "extend" in change_bar:
        change_bar["extend"] = "both"
    strength = {"cmap": SEQUENTIAL, "vmin": 0, "vmax": top}
    change = {"cmap": DIVERGING, "vmin": -most, "vmax": most}
    maps = ((before, f"{what}: before", strength), (after, "after", strength))
    for axes, (grid, title, colors) in zip(
        panels, (*maps, (after - before, "after − before", change)), strict=True
    ):
        image = _map(axes, inspection, at, grid, rows, title, **colors)
        if axes is not panels[0]:
            axes.set_ylabel("")
            legend = bar if axes is panels[1] else change_bar
            axes.figure.colorbar(image, ax=axes, **legend)


def _percentile_bars(axes: Any, inspection: Inspection, kind: QueryOrKey) -> None:
    """For each layer nested bars of percentiles of α·S, darker toward the median."""
    signals: list[SignalStatistics] = [getattr(effect, kind) for effect in inspection.effects]
    layers = range(len(signals))
    for width, low, high, opacity in ((0.8, 1, 99, 0.2), (0.62, 5, 95, 0.4), (0.44, 25, 75, 1)):
        bottom = np.array([s.percentiles[low] for s in signals])
        top = np.array([s.percentiles[high] for s in signals])
        axes.bar(
            layers, top - bottom, width, bottom, color=COLORS[kind], alpha=opacity,
            label=f"{low} to {high} %", lw=0,
        )  # fmt: skip
    axes.plot(
        layers, [s.percentiles[50] for s in signals], "o", ms=3.6, mfc="white", mec=COLORS[kind],
        mew=1.1, label="median",
    )  # fmt: skip
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylabel("α·S")
    axes.set_title(f"α·S on {NAMES[kind]}: percentiles")
    _finish_layer_axis(axes, [effect.index for effect in inspection.effects])
    ends = [s.percentiles[p] for s in signals for p in (1, 99)]
    room = 0.06 * (max(ends) - min(ends) or 1.0)
    axes.set_ylim(min(ends) - room, max(ends) + room)


def _head_map(axes: Any, inspection: Inspection, kind: QueryOrKey) -> None:
    """Layers x heads: the root mean square of α·S."""
    effects = inspection.effects
    grid = stack_rows([getattr(effect, kind).per_head for effect in effects])
    top, bar = color_scale([grid], "RMS of α·S")
    indices = [effect.index for effect in effects]
    image = heat_map(axes, grid, indices, "layer", cmap=SEQUENTIAL, vmin=0, vmax=top)
    axes.set_xticks(range(0, grid.shape[1], max(1, grid.shape[1] // 8)))
    axes.set_xlabel("head")
    axes.set_title(f"{NAMES[kind]}: α·S by head")
    axes.figure.colorbar(image, ax=axes, **bar)


def _norm_lines(axes: Any, inspection: Inspection) -> None:
    """A line per norm: how far training has changed its scale, by layer."""
    changes = inspection.norm_changes
    for n, name in enumerate(dict.fromkeys(name for layer in changes for name in layer)):
        axes.plot(
            range(len(changes)), [100 * layer.get(name, np.nan) for layer in changes],
            marker=_MARKERS[n % len(_MARKERS)], ms=5, lw=1.4,
            color=_NORM_COLORS[n % len(_NORM_COLORS)], label=name,
        )  # fmt: skip
    axes.set_ylim(0, None)
    axes.set_ylabel("change, %")
    axes.set_title("the norms: ‖trained scale − scale‖ / ‖scale‖")
    _finish_layer_axis(axes, inspection.layers)


def _finish_layer_axis(axes: Any, indices: Sequence[int]) -> None:
    """Ticks of layers, and the legend next to the title, where nothing is drawn."""
    step = max(1, len(indices) // 16)
    axes.set_xticks(range(0, len(indices), step), [str(i) for i in indices[::step]])
    axes.set_xlabel("layer")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=SOFT, alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(
        ncols=4, frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.2, handlelength=1.6, columnspacing=1.4,
    )  # fmt: skip


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
