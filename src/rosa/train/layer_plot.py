"""The picture of layer selection: what was chosen when, how often each layer was, and its scores.

    draw_layers(read_history("runs/tiny"), "layers.png", "runs/tiny")

layer │ ▒▓░▓▒▓   │ ▆▆▆▆  │  ├─▇▇─┤
      │ ░▓▓░▓▒   │ ▆▆    │ ├▇─┤
      └──────────┴───────┴─────────
        choices    how often  scores
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosa.common.plot_style import INK, SOFT, canvas
from rosa.dls.choice import EXPLOIT, EXPLORE, STATIC
from rosa.errors import RosaError

HISTORY = "dls_history.jsonl"
WIDE = 20  # scores that reach further than this are drawn on a logarithmic axis
# Mode: what it is called, its colour map, and the colour that stands for it elsewhere.
MODES = {
    EXPLOIT: ("by score", "Blues", "#2070b4"),
    EXPLORE: ("at random", "Oranges", "#e1640e"),
    STATIC: ("given", "Greens", "#238b45"),
}
FROZEN = ("frozen", "Greys", "#d9d9d9")
MOST_TICKS = 20

Record = Mapping[str, Any]


def read_history(place: str | Path) -> list[Record]:
    """The choices of a run, from its folder or its `dls_history.jsonl`.

    A last line that a kill tore is passed over.

    Raises:
        RosaError: there is no such file, it is damaged, or no choice was made.
    """
    path = Path(place)
    file = path / HISTORY if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        where = (
            "it is a study's folder; name one of its runs, or see them all by `rosa report`"
            if (path / "grid.yaml").is_file()
            else "name the folder of a run that was trained with dls"
        )
        raise RosaError(f"{path} holds no {HISTORY}: {where}")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RosaError(f"there is no run or history {path}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RosaError(f"{file} cannot be read ({error}); name a run's {HISTORY}") from None
    whole = text[: text.rfind("\n") + 1].splitlines()
    records = [_record(line, file, number) for number, line in enumerate(whole, 1)]
    if not records:
        raise RosaError(
            f"{file} holds no choice: the run is shorter than dls.interval or its warm-up, or has "
            "not come to its first choice"
        )
    if len({len(record["scores"]) for record in records}) > 1:
        raise RosaError(f"{file} holds choices of models with different numbers of layers")
    return records


def _record(line: str, file: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        layers = range(len(record["scores"]))
        whole = record["mode"] in MODES and all(i in layers for i in record["selected"])
        if layers and whole and isinstance(record["step"], int):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise RosaError(f"{file}, row {number} is no record of a choice; name a run's {HISTORY}")


def scores_of(record: Record) -> list[float]:
    """One score per layer; NaN where a layer was not scored."""
    return [math.nan if score is None else score for score in record["scores"]]


def often(records: Sequence[Record]) -> list[float]:
    """Of each layer, by index, the share of the choices that took it."""
    chosen = Counter(i for record in records for i in record["selected"])
    return [chosen[i] / len(records) for i in range(len(records[0]["scores"]))]


def summary(records: Sequence[Record]) -> str:
    """The picture in a sentence or two."""
    modes = Counter(record["mode"] for record in records)
    ways = ", ".join(f"{modes[m]} {name}" for m, (name, _, _) in MODES.items() if modes[m])
    shares = often(records)
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    top = ", ".join(f"{i} ({100 * shares[i]:.0f} %)" for i in order[:5] if shares[i])
    never = [str(i) for i, share in enumerate(shares) if not share]
    said = f"{_choices(records)} among {len(shares)} layers: {ways}; most often layer {top}"
    return said + (f"; never {', '.join(never)}" if never else "")


def _choices(records: Sequence[Record]) -> str:
    return f"{len(records)} choice" + ("s" if len(records) > 1 else "")


def draw_layers(records: Sequence[Record], picture: str | Path, name: str) -> None:
    """Writes the picture of a run's choices; the file's ending says in which format."""
    layers = len(records[0]["scores"])
    width = min(9.0, max(3.0, 0.16 * len(records))) + 5.4
    height = min(11.0, max(3.4, 1.9 + 0.17 * layers))
    sizes = Counter(len(record["selected"]) for record in records)
    k = "/".join(map(str, sorted(sizes)))
    says = f"{_choices(records)} of {k} of {layers} layers; darker: higher score in its step"
    with canvas(width, height, f"Chosen layers: {name}", says) as figure:
        panels = figure.subplots(
            1, 3, sharey=True, gridspec_kw={"width_ratios": [width - 5.0, 1.9, 2.5]}
        )
        _draw_map(panels[0], records)
        _draw_often(panels[1], records)
        _draw_scores(panels[2], records)
        every = math.ceil(layers / MOST_TICKS)
        panels[0].set(yticks=range(0, layers, every), ylim=(-0.5, layers - 0.5), ylabel="layer")
        for axes in panels[1:]:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", color="#e6e9ec", lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        _legend(figure, {record["mode"] for record in records})
        figure.savefig(picture)


def colours_of(records: Sequence[Record]) -> np.ndarray:
    """The map's cells as RGBA, (layers, choices, 4): the hue says how chosen, the depth the score.

    Scores are relative to the largest of their step: their scale falls with the loss, and the
    choice depends on their order alone. Without a score the depth is in the middle.
    """
    from matplotlib import colormaps

    cells = np.empty((len(records[0]["scores"]), len(records), 4))
    for column, record in enumerate(records):
        scores = np.array(scores_of(record), dtype=float)
        largest = np.nanmax(scores) if np.isfinite(scores).any() else 0.0
        depth = np.nan_to_num(scores / largest, nan=0.5) if largest else np.full(len(scores), 0.5)
        cells[:, column] = colormaps[FROZEN[1]](0.04 + 0.3 * depth)
        chosen = sorted(record["selected"])
        cells[chosen, column] = colormaps[MODES[record["mode"]][1]](0.4 + 0.55 * depth[chosen])
    return cells


def _draw_map(axes: Any, records: Sequence[Record]) -> None:
    axes.imshow(colours_of(records), aspect="auto", origin="lower", interpolation="nearest")
    every = math.ceil(len(records) / 8)
    ticks = range(0, len(records), every)
    axes.set_xticks(list(ticks), [str(records[i]["step"]) for i in ticks])
    axes.set(title="what was chosen", xlabel="optimizer step of the choice")


def _draw_often(axes: Any, records: Sequence[Record]) -> None:
    layers = range(len(records[0]["scores"]))
    left = [0.0] * len(layers)
    for mode, (_, _, colour) in MODES.items():
        chosen = Counter(i for r in records if r["mode"] == mode for i in r["selected"])
        shares = [100 * chosen[i] / len(records) for i in layers]
        axes.barh(layers, shares, left=left, height=0.74, color=colour)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.axvline(100 * sum(often(records)) / len(layers), color=INK, lw=1.0, ls=(0, (4, 2)))
    axes.set(title="how often", xlabel="% of choices (line: even)", xlim=(0, 100))


def _draw_scores(axes: Any, records: Sequence[Record]) -> None:
    axes.set(title="scores", xlabel="score (box: middle half)")
    columns = np.array([scores_of(record) for record in records if record["mode"] != STATIC])
    if not columns.size:
        axes.text(0.5, 0.5, "not scored", transform=axes.transAxes, ha="center", color=SOFT)
        axes.set_xticks([])
        return
    low, first, middle, third, high = np.percentile(columns, [0, 25, 50, 75, 100], axis=0)
    rows = np.arange(columns.shape[1])
    axes.hlines(rows, low, high, color=SOFT, lw=0.9)
    axes.barh(rows, third - first, left=first, height=0.6, color="#b9c4cf")
    axes.vlines(middle, rows - 0.38, rows + 0.38, color=INK, lw=1.4)
    if low.min() > 0 and high.max() > WIDE * low.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0, None)


def _legend(figure: Any, modes: set[str]) -> None:
    from matplotlib.patches import Patch

    shown = [MODES[mode] for mode in MODES if mode in modes] + [FROZEN]
    marks = [Patch(color=colour, label=name) for name, _, colour in shown]
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), frameon=False)
