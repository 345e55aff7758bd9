"""A run's pictures: `loss.png`, and `layers.png` of its dynamic layer selection.

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

from rosa.common.files import read_jsonl
from rosa.common.plot_style import INK, SOFT, canvas
from rosa.dls.choice import EXPLOIT, EXPLORE, HISTORY_FILE, STATIC
from rosa.errors import RosaError

LOG_RANGE = 20  # values that span more than this factor are drawn on a logarithmic axis
MODES = {  # label and color
    EXPLOIT: ("by score", "#2f7fc1"),
    EXPLORE: ("at random", "#e1640e"),
    STATIC: ("given", "#238b45"),
    "random": ("at random", "#e1640e"),
    "weighted": ("in proportion to scores", "#7b52ab"),
    "cyclic": ("in turn", "#0e8f8f"),
    "upper": ("the last", "#238b45"),
    "lower": ("the first", "#238b45"),
}
FROZEN = ("frozen", "#80808040")
MAX_TICKS = 20

Record = Mapping[str, Any]


def draw_loss(metrics: Path, picture: Path) -> bool:
    """Training and validation loss against the step; False if `metrics` holds no loss."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    records = read_jsonl(metrics)
    train, validation = (loss_series(records, key) for key in ("loss", "eval_loss"))
    if not train:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color="#1f4e79", label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="#c55a11", ms=4, label="validation")
        axes.legend(frameon=False)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    scale_losses(axes, [loss for _, loss in train])
    axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=130)
    return True


def loss_series(records: Sequence[Record], key: str) -> list[tuple[int, float]]:
    """(step, loss) of each record with a finite `loss` or `eval_loss`, which `key` names."""
    pairs = [(record["step"], record.get(key)) for record in records]
    return [(step, v) for step, v in pairs if isinstance(v, int | float) and math.isfinite(v)]


def scale_losses(axes: Any, losses: Sequence[float]) -> None:
    """A logarithmic axis where the losses span far, else one from 0."""
    if _spans_far(min(losses), max(losses)):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)


def _spans_far(low: float, high: float) -> bool:
    return low > 0 and high > LOG_RANGE * low


def read_history(place: str | Path) -> list[Record]:
    """The choices of a run, from its folder or its `dls_history.jsonl`.

    An incomplete last line, which a killed run leaves, is ignored.

    Raises:
        RosaError: there is no such file, it is damaged, or no choice was made.
    """
    path = Path(place)
    file = path / HISTORY_FILE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        where = (
            "it is a study's folder; name one of its runs, or see them all with `rosa report`"
            if (path / "grid.yaml").is_file()
            else "name the folder of a run that was trained with dls"
        )
        raise RosaError(f"{path} has no {HISTORY_FILE}: {where}")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RosaError(f"there is no run or history {path}; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RosaError(f"{file} cannot be read ({error}); name a run's {HISTORY_FILE}") from None
    complete = text[: text.rfind("\n") + 1].splitlines()
    records = [_record(line, file, number) for number, line in enumerate(complete, 1)]
    if not records:
        raise RosaError(
            f"{file} has no choice: the run is shorter than dls.interval or its warm-up, or has "
            "not reached its first choice"
        )
    if len({len(record["scores"]) for record in records}) > 1:
        raise RosaError(f"{file} has choices of models with different numbers of layers")
    return records


def _record(line: str, file: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        layers = range(len(record["scores"]))
        valid = record["mode"] in MODES and all(i in layers for i in record["selected"])
        if layers and valid and isinstance(record["step"], int):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise RosaError(f"{file}, row {number} is not a choice of layers; name a run's {HISTORY_FILE}")


def scores_of(record: Record) -> list[float]:
    """One score per layer; NaN where a layer was not scored."""
    return [math.nan if score is None else score for score in record["scores"]]


def selection_shares(records: Sequence[Record], mode: str | None = None) -> list[float]:
    """For each layer, the share of the choices that selected it (in `mode`, if given)."""
    selected = Counter(i for r in records if mode in (None, r["mode"]) for i in r["selected"])
    return [selected[i] / len(records) for i in range(len(records[0]["scores"]))]


def summarize(records: Sequence[Record]) -> str:
    """The choices in one sentence: how many, in which modes, and which layers most often."""
    modes = Counter(record["mode"] for record in records)
    counts = ", ".join(f"{modes[m]} {name}" for m, (name, _) in MODES.items() if modes[m])
    shares = selection_shares(records)
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], i))
    top = ", ".join(f"{i} ({100 * shares[i]:.0f} %)" for i in order[:5] if shares[i])
    never = ", ".join(str(i) for i, share in enumerate(shares) if not share)
    text = f"{_choices(records)} among {len(shares)} layers: {counts}; most often layer {top}"
    return text + (f"; never {never}" if never else "")


def _choices(records: Sequence[Record]) -> str:
    return f"{len(records)} choice" + ("s" if len(records) > 1 else "")


def draw_layers(records: Sequence[Record], picture: str | Path, name: str) -> None:
    """Draws a run's choices; the format follows from the suffix of `picture`."""
    from matplotlib.patches import Patch

    layers = len(records[0]["scores"])
    width = min(9.0, max(3.0, 0.16 * len(records))) + 5.4
    height = min(11.0, max(3.4, 1.9 + 0.17 * layers))
    k = "/".join(map(str, sorted({len(record["selected"]) for record in records})))
    subtitle = f"{_choices(records)} of {k} of {layers} layers; darker: higher score in its step"
    with canvas(width, height, f"Chosen layers: {name}", subtitle) as figure:
        panels = figure.subplots(
            1, 3, sharey=True, gridspec_kw={"width_ratios": [width - 5.0, 1.9, 2.5]}
        )
        draw_map(panels[0], records)
        draw_shares(panels[1], records)
        _draw_scores(panels[2], records)
        every = math.ceil(layers / MAX_TICKS)
        panels[0].set(yticks=range(0, layers, every), ylim=(-0.5, layers - 0.5), ylabel="layer")
        for axes in panels[1:]:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", color="#e6e9ec", lw=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        modes = {record["mode"] for record in records}
        shown = [entry for mode, entry in MODES.items() if mode in modes] + [FROZEN]
        patches = [Patch(color=color, label=label) for label, color in shown]
        figure.legend(handles=patches, loc="outside lower left", ncols=len(patches), frameon=False)
        figure.savefig(picture)


def cell_colors(records: Sequence[Record]) -> np.ndarray:
    """The map's cells as RGBA, (layers, choices, 4): the hue is the mode, the opacity the score.

    Scores are relative to the largest of their step: their scale falls with the loss, and the
    choice depends on their order alone. Without a score the opacity is in the middle.
    """
    from matplotlib.colors import to_rgb

    cells = np.empty((len(records[0]["scores"]), len(records), 4))
    for column, record in enumerate(records):
        scores = np.array(scores_of(record), dtype=float)
        largest = np.nanmax(scores) if np.isfinite(scores).any() else 0.0
        depth = np.nan_to_num(scores / largest, nan=0.5) if largest else np.full(len(scores), 0.5)
        cells[:, column, :3], cells[:, column, 3] = to_rgb(FROZEN[1]), 0.06 + 0.3 * depth
        selected = sorted(record["selected"])
        cells[selected, column, :3] = to_rgb(MODES[record["mode"]][1])
        cells[selected, column, 3] = 0.4 + 0.6 * depth[selected]
    return cells


def draw_map(axes: Any, records: Sequence[Record]) -> None:
    """What was chosen when: layers up, choices across."""
    axes.imshow(cell_colors(records), aspect="auto", origin="lower", interpolation="none")
    ticks = range(0, len(records), math.ceil(len(records) / 8))
    axes.set_xticks(list(ticks), [str(records[i]["step"]) for i in ticks])
    axes.set(title="what was chosen", xlabel="optimizer step of the choice")


def draw_shares(axes: Any, records: Sequence[Record]) -> None:
    """How often each layer was chosen, as stacked bars by mode."""
    rows = np.arange(len(records[0]["scores"]))
    left = np.zeros(len(rows))
    for mode, (_, color) in MODES.items():
        shares = 100 * np.array(selection_shares(records, mode))
        axes.barh(rows, shares, left=left, height=0.74, color=color)
        left += shares
    axes.axvline(left.mean(), color=INK, lw=1.0, ls=(0, (4, 2)))
    axes.set(title="how often", xlabel="% of choices (line: even)", xlim=(0, 100))


def _draw_scores(axes: Any, records: Sequence[Record]) -> None:
    axes.set(title="scores", xlabel="score (box: middle half)")
    columns = np.array([scores_of(record) for record in records if None not in record["scores"]])
    if not columns.size:
        axes.text(0.5, 0.5, "not scored", transform=axes.transAxes, ha="center", color=SOFT)
        axes.set_xticks([])
        return
    low, first, middle, third, high = np.percentile(columns, [0, 25, 50, 75, 100], axis=0)
    rows = np.arange(columns.shape[1])
    axes.hlines(rows, low, high, color=SOFT, lw=0.9)
    axes.barh(rows, third - first, left=first, height=0.6, color="#b9c4cf")
    axes.vlines(middle, rows - 0.38, rows + 0.38, color=INK, lw=1.4)
    if _spans_far(low.min(), high.max()):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    else:
        axes.set_xlim(0, None)
