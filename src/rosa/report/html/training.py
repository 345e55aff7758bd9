"""What happened while the runs trained: loss curves, and which layers were chosen when."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rosa.common.files import read_jsonl
from rosa.common.formatting import format_number
from rosa.compare.results import RunResult, StudyResults
from rosa.report.html.axes import Axis, Tick, fit, is_wide
from rosa.train.plots import scores_of
from rosa.train.run_folder import RunFolder

POINTS = 120  # per curve; more would not be seen
CHOICES = 150  # columns of a layer map
SHADES = 5

PANEL = (220, 120)  # of a loss panel, in view-box units
MAP_WIDTH, MAP_HEIGHT = 220, 120


@dataclass(frozen=True)
class Curve:
    """One run's losses: an SVG path of the training loss, and the points of the validation loss."""

    seed: int
    path: str
    held_out: tuple[tuple[float, float, float], ...]  # (x, y, loss)


@dataclass(frozen=True)
class Panel:
    """One method's curves, a line per seed."""

    title: str
    group: str
    curves: tuple[Curve, ...]
    says: str


@dataclass(frozen=True)
class Losses:
    """The panels of one model and training set, all on the same axes."""

    model: str
    train_set: str
    panels: tuple[Panel, ...]
    steps: int
    ticks: tuple[Tick, ...]
    log: bool


def losses(study: StudyResults) -> list[Losses]:
    """One group of panels per model and training set that has any curve."""
    found = []
    for model, train_set, runs in _groups(study):
        records = [(r, read_jsonl(RunFolder(study.folder / r.folder).metrics)) for r in runs]
        records = [(run, lines) for run, lines in records if any("loss" in r for r in lines)]
        if records:
            found.append(_losses(model, train_set, records))
    return found


def _losses(
    model: str, train_set: str, records: Sequence[tuple[RunResult, list[dict[str, Any]]]]
) -> Losses:
    keys = ("loss", "eval_loss")
    every = [v for _, lines in records for key in keys for _, v in _series(lines, key)]
    log = is_wide(every)
    axis = fit(every if log else [0, *every], log=log, margin=0.03)
    steps = max((line["step"] for _, lines in records for line in lines), default=1) or 1
    panels = []
    for title in dict.fromkeys(run.title for run, _ in records):
        own = [(run, lines) for run, lines in records if run.title == title]
        curves = tuple(_curve(run.seed, lines, axis, steps) for run, lines in own)
        panels.append(Panel(title, own[0][0].group, curves, _ends([lines for _, lines in own])))
    return Losses(model, train_set, tuple(panels), steps, tuple(axis.ticks(4)), log)


def _curve(seed: int, lines: list[dict[str, Any]], axis: Axis, steps: int) -> Curve:
    def place(step: float, loss: float) -> tuple[float, float]:
        return round(PANEL[0] * step / steps, 1), round(PANEL[1] * (1 - axis.at(loss)), 1)

    train = [(s, v) for s, v in _series(lines, "loss") if v > 0 or not axis.log]
    points = [place(*point) for point in thin(train, POINTS)]
    path = "M" + " ".join(f"{x:g},{y:g}" for x, y in points) if points else ""
    held = [(s, v) for s, v in _series(lines, "eval_loss") if v > 0 or not axis.log]
    return Curve(seed, path, tuple((*place(s, v), v) for s, v in thin(held, POINTS)))


def _ends(runs: Sequence[list[dict[str, Any]]]) -> str:
    """The last training loss and the lowest validation loss, means over the seeds."""
    last = [series[-1][1] for lines in runs if (series := _series(lines, "loss"))]
    best = [min(v for _, v in s) for lines in runs if (s := _series(lines, "eval_loss"))]
    says = [f"ends at {format_number(sum(last) / len(last))}"] if last else []
    says += [f"validation {format_number(sum(best) / len(best))}"] if best else []
    return ", ".join(says) or "no finite loss"


def _series(lines: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (line["step"], line[key])
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    ]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, evenly spaced, the last one among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


@dataclass(frozen=True)
class LayerMap:
    """One run's choices: a column per choice, a row per layer, the first layer at the bottom.

    Attributes:
        paths: (class, SVG path) pairs: cells of one shade, chosen or not.
        explored: positions of the columns that were chosen at random.
        steps: the first and last step shown.
        shown, of: choices that have a column, and all.
    """

    seed: int
    paths: tuple[tuple[str, str], ...]
    explored: tuple[float, ...]
    cell_width: float
    steps: tuple[int, int]
    shown: int
    of: int


@dataclass(frozen=True)
class Layers:
    """One method's layer maps and how often each layer was chosen, in percent of all choices."""

    title: str
    group: str
    maps: tuple[LayerMap, ...]
    shares: tuple[float, ...]

    @property
    def row(self) -> float:
        """Height of a layer's row."""
        return row_height(len(self.shares))

    @property
    def height(self) -> float:
        return self.row * len(self.shares)

    @property
    def favourites(self) -> list[tuple[int, float]]:
        """The layers that were chosen most often, at most five."""
        chosen = [i for i, share in enumerate(self.shares) if share > 0]
        order = sorted(chosen, key=lambda i: -self.shares[i])
        return [(i, self.shares[i]) for i in order[:5]]


def layers(study: StudyResults) -> list[tuple[str, str, list[Layers]]]:
    """(model, training set, methods that choose layers), where there are any."""
    found = []
    for model, train_set, runs in _groups(study):
        histories = [(r, read_jsonl(RunFolder(study.folder / r.folder).dls_history)) for r in runs]
        histories = [(run, records) for run, records in histories if records]
        titles = dict.fromkeys(run.title for run, _ in histories)
        methods = [_layers([h for h in histories if h[0].title == title]) for title in titles]
        if methods:
            found.append((model, train_set, methods))
    return found


def _layers(histories: Sequence[tuple[RunResult, list[dict[str, Any]]]]) -> Layers:
    first = histories[0][0]
    count = len(histories[0][1][0]["scores"])
    chosen = Counter(i for _, records in histories for r in records for i in r["selected"])
    choices = sum(len(records) for _, records in histories)
    shares = tuple(100 * chosen[i] / choices for i in range(count))
    maps = tuple(_map(run.seed, records, count) for run, records in histories)
    return Layers(first.title, first.group, maps, shares)


def _map(seed: int, records: list[dict[str, Any]], count: int) -> LayerMap:
    shown = [records[int(x)] for x, _ in thin([(i, 0) for i in range(len(records))], CHOICES)]
    width = round(MAP_WIDTH / len(shown), 2)
    row = row_height(count)
    cells: dict[str, list[str]] = {}
    for column, record in enumerate(shown):
        scores = scores_of(record)
        largest = max((s for s in scores if math.isfinite(s)), default=0) or 1.0
        chosen = set(record["selected"])
        for layer, score in enumerate(scores):
            # Relative to the step's largest: the scale falls with the loss, the order decides.
            share = score / largest if math.isfinite(score) else 0.0
            shade = min(SHADES - 1, int(share * SHADES))
            kind = f"{'c' if layer in chosen else 'n'}{shade}"
            x, y = round(column * width, 2), row * (count - 1 - layer)
            cells.setdefault(kind, []).append(f"M{x:g} {y:g}h{width:g}v{row:g}h-{width:g}z")
    return LayerMap(
        seed=seed,
        paths=tuple((kind, "".join(parts)) for kind, parts in sorted(cells.items())),
        explored=tuple(
            round((i + 0.5) * width, 2) for i, r in enumerate(shown) if r["mode"] == "explore"
        ),
        cell_width=width,
        steps=(records[0]["step"], records[-1]["step"]),
        shown=len(shown),
        of=len(records),
    )


def row_height(layers: int) -> float:
    """Few layers get high rows, many get low ones that can still be told apart."""
    return min(16.0, max(6.0, MAP_HEIGHT / layers))


def _groups(study: StudyResults) -> list[tuple[str, str, list[RunResult]]]:
    return [
        (model, train_set, runs)
        for model in study.names("model")
        for train_set in study.names("train_set")
        if (runs := study.select(model=model, train_set=train_set))
    ]
