"""The pictures of a study: every method's seeds side by side, and accuracy against costs.

write_pictures(study, study.folder / "figures")
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rosa.common.formatting import visible
from rosa.common.plot_style import GRID, canvas, percent_axis, remove_frame
from rosa.compare.job import folder_name
from rosa.compare.results import RunResult, StudyResults, by_method
from rosa.compare.significance import MeanStd
from rosa.models.loading import short_name
from rosa.report.plots.cost_plot import GROUPS, CostPoint, draw_costs, draw_legend
from rosa.report.tables.costs import mean_cost

MAX_LABELED = 16  # methods that a plot of costs has room to name
MAX_NAME = 32  # characters of a name in a plot
BASELINE = {"color": GROUPS["baseline"][1], "lw": 0.8, "ls": ":"}

MethodRows = Mapping[str, Sequence[RunResult]]


def write_pictures(study: StudyResults, folder: str | Path) -> list[Path]:
    """Two PNGs for each model, training set and suite that has a finished run."""
    folder = Path(folder)
    written = []
    for model in study.names("model"):
        for train_set in study.names("train_set"):
            runs = study.select(model=model, train_set=train_set)
            for suite in dict.fromkeys(score.suite for run in runs for score in run.scores):
                name = "-".join(map(folder_name, (model, train_set, suite)))
                methods, costs = (folder / f"{name}-{kind}.png" for kind in ("methods", "costs"))
                folder.mkdir(parents=True, exist_ok=True)
                rows = best_first(runs, suite)
                conditions = f"{short_name(model)}, trained on {train_set}, {suite} tasks"
                title = "Micro average of every method, each seed a dot"
                with canvas(8.6, methods_height(rows) + 0.7, title, conditions) as figure:
                    draw_methods(figure.subplots(), rows, partial(RunResult.micro, suite=suite))
                    groups = {runs[0].group for runs in rows.values()}
                    line = BASELINE | {"label": "best baseline"} if "baseline" in groups else None
                    draw_legend(figure, {g: GROUPS[g] for g in GROUPS if g in groups}, line)
                    figure.savefig(methods)
                draw_costs(cost_points(rows, suite), costs)
                written += [methods, costs]
    return written


def best_first(runs: Sequence[RunResult], suite: str) -> dict[str, list[RunResult]]:
    """`by_method`, the method with the best micro average first."""
    rows = by_method(runs, suite)
    mean = {name: statistics.fmean(r.micro(suite) for r in rows[name]) for name in rows}
    return {name: rows[name] for name in sorted(rows, key=lambda name: -mean[name])}


def plot_name(run: RunResult) -> str:
    """The method's title, short enough for a plot."""
    name = visible(run.title)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def methods_height(rows: MethodRows) -> float:
    """Inches that `draw_methods` needs for so many rows."""
    return 0.9 + 0.27 * len(rows)


def draw_methods(axes: Any, rows: MethodRows, value: Callable[[RunResult], float]) -> None:
    """A line per method: its seeds as dots, their mean and standard deviation, and both as text.

    A dotted line marks the best baseline.
    """
    reach, baselines = [], []
    for y, runs in enumerate(rows.values()):
        _, color, shape = GROUPS[runs[0].group]
        values = [value(run) for run in runs]
        stats = MeanStd.of(values)
        std = stats.std or 0.0
        axes.plot([stats.mean - std, stats.mean + std], [y, y], color=color, lw=1.1, alpha=0.7)
        if len(runs) > 1:
            hover = ", ".join(f"seed {r.seed}: {v:.1f}" for r, v in zip(runs, values, strict=True))
            axes.plot(values, [y] * len(runs), "o", ms=4, color=color, alpha=0.5, mew=0, gid=hover)
        axes.plot(stats.mean, y, shape, ms=6, color=color, mew=0)
        text = f"{stats.mean:.1f}" + ("" if stats.std is None else f" ± {std:.1f}")
        axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", size=8.5)
        baselines += [stats.mean] if runs[0].group == "baseline" else []
        reach += [*values, stats.mean - std, stats.mean + std]
    if baselines:
        axes.axvline(max(baselines), **BASELINE, zorder=0)
    axes.set_yticks(range(len(rows)), [plot_name(runs[0]) for runs in rows.values()])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    percent_axis(axes, "x", reach)
    axes.set_xlabel("accuracy (%)")
    axes.grid(color=GRID, lw=0.6)
    axes.set_axisbelow(True)
    remove_frame(axes)


def cost_points(rows: MethodRows, suite: str) -> list[CostPoint]:
    """One point per method, means over its seeds; without variants where there are too many."""
    if len(rows) > MAX_LABELED:
        main = {name: runs for name, runs in rows.items() if runs[0].group != "variant"}
        rows = main or rows
    return [
        CostPoint(
            name=plot_name(runs[0]),
            accuracy=statistics.fmean(run.micro(suite) for run in runs),
            seconds=mean_cost(runs, "train_seconds"),
            peak_bytes=mean_cost(runs, "peak_device_bytes") or mean_cost(runs, "peak_host_bytes"),
            trainable=round(statistics.fmean(run.trainable for run in runs)),
            group=runs[0].group,
        )
        for runs in rows.values()
    ]
