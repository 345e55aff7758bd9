"""The pictures of a study: every method's seeds beside each other, and accuracy against costs.

write_pictures(study, study.folder / "figures")
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosa.common.plot_style import canvas
from rosa.compare.plan import folder_name
from rosa.compare.results import RunResult, StudyResults
from rosa.models.loading import short_name
from rosa.report.plots.cost_plot import CostPoint, draw_costs

COLOURS = {"ours": "#d55e00", "baseline": "#0072b2", "variant": "#5b6b7a"}
LABELLED = 16  # methods that a picture of costs has room to name
NAMES = {"ours": "RoSA", "baseline": "baselines", "variant": "variants"}


def write_pictures(study: StudyResults, folder: str | Path) -> list[Path]:
    """Two PNGs for each model, training set and suite that has a finished run."""
    folder = Path(folder)
    written = []
    for model in study.names("model"):
        for train_set in study.names("train_set"):
            runs = study.select(model=model, train_set=train_set)
            for suite in dict.fromkeys(score.suite for run in runs for score in run.scores):
                name = "-".join(map(folder_name, (model, train_set, suite)))
                folder.mkdir(parents=True, exist_ok=True)
                conditions = f"{short_name(model)}, trained on {train_set}, {suite} tasks"
                rows = by_method(runs)
                draw_methods(rows, suite, conditions, folder / f"{name}-methods.png")
                draw_costs(cost_points(without_crowd(rows), suite), folder / f"{name}-costs.png")
                written += [folder / f"{name}-methods.png", folder / f"{name}-costs.png"]
    return written


def by_method(runs: Sequence[RunResult]) -> dict[str, list[RunResult]]:
    """The runs of each method, in the grid's order."""
    rows: dict[str, list[RunResult]] = {}
    for run in runs:
        rows.setdefault(run.method, []).append(run)
    return rows


def draw_methods(
    rows: dict[str, list[RunResult]], suite: str, conditions: str, picture: Path
) -> None:
    """A line per method: its seeds as dots, their mean as a bar; a PNG."""
    title = "Micro-average of every method, each seed a dot"
    height = 1.9 + 0.27 * len(rows)
    with canvas(8.6, height, title, conditions) as figure:
        axes = figure.subplots()
        for y, runs in enumerate(rows.values()):
            _row(axes, y, [run.micro(suite) for run in runs], COLOURS[runs[0].group])
        best = _best_baseline(rows, suite)
        if best is not None:
            axes.axvline(best, color=COLOURS["baseline"], lw=0.8, ls=":", zorder=0)
        axes.set_yticks(range(len(rows)), [runs[0].title for runs in rows.values()])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("micro-average, %")
        axes.grid(axis="y", color="#e6e9ec", lw=0.6)
        axes.set_axisbelow(True)
        _legend(figure, {runs[0].group for runs in rows.values()}, best is not None)
        figure.savefig(picture)


def without_crowd(rows: dict[str, list[RunResult]]) -> dict[str, list[RunResult]]:
    """The rows, without variants where all of them would be too many to label."""
    if len(rows) <= LABELLED:
        return rows
    main = {name: runs for name, runs in rows.items() if runs[0].group != "variant"}
    return main or rows


def cost_points(rows: dict[str, list[RunResult]], suite: str) -> list[CostPoint]:
    """One point per method: means over its seeds."""
    return [
        CostPoint(
            name=runs[0].title,
            accuracy=statistics.fmean(run.micro(suite) for run in runs),
            seconds=_mean_cost(runs, "train_seconds"),
            peak_bytes=_mean_cost(runs, "peak_device_bytes") or _mean_cost(runs, "peak_host_bytes"),
            trainable=runs[0].trainable,
            group=NAMES[runs[0].group],
        )
        for runs in rows.values()
    ]


def _row(axes: Any, y: int, values: Sequence[float], colour: str) -> None:
    axes.plot(values, [y] * len(values), "o", ms=4, color=colour, alpha=0.55, mew=0)
    mean = statistics.fmean(values)
    axes.plot([mean, mean], [y - 0.32, y + 0.32], color=colour, lw=2, solid_capstyle="butt")


def _best_baseline(rows: dict[str, list[RunResult]], suite: str) -> float | None:
    means = [
        statistics.fmean(run.micro(suite) for run in runs)
        for runs in rows.values()
        if runs[0].group == "baseline"
    ]
    return max(means, default=None)


def _mean_cost(runs: Sequence[RunResult], key: str) -> float | None:
    values = [run.costs[key] for run in runs if run.costs.get(key) is not None]
    return statistics.fmean(values) if values else None


def _legend(figure: Any, groups: set[str], has_line: bool) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [
        Line2D([], [], color=COLOURS[group], marker="o", ls="", label=NAMES[group])
        for group in COLOURS
        if group in groups
    ]
    if has_line:
        colour = COLOURS["baseline"]
        marks.append(Line2D([], [], label="best baseline", color=colour, lw=0.8, ls=":"))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
