"""The page's plots: accuracy and costs of each result table, losses and layer maps of the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from markupsafe import Markup

from rosa.common.files import read_jsonl
from rosa.common.formatting import format_number
from rosa.common.plot_style import GRID, remove_frame, styled_figure
from rosa.compare.results import RunResult, StudyResults
from rosa.report.plots.cost_plot import GROUPS, draw_panels, measured_panels
from rosa.report.plots.study_plots import best_first, cost_points, draw_methods, methods_height
from rosa.report.plots.svg import svg
from rosa.report.tables.sections import Section
from rosa.train.plots import draw_map, draw_shares, loss_series, scale_losses, summarize
from rosa.train.run_folder import RunFolder

WIDE, TILE = 5.0, 3.1  # inches of a figure
VALIDATION = "#2a9d5c"
DOTS = {"ls": "", "marker": "o", "ms": 3, "mew": 0, "color": VALIDATION}
CURVES = (("loss", "training", {"lw": 1, "alpha": 0.6}), ("eval_loss", "validation", DOTS))
MAX_POINTS = 120  # per curve; more would not be seen
MAX_CHOICES = 150  # columns of a layer map
MAX_LAYER_TICKS = 6


@dataclass(frozen=True)
class Plot:
    """One figure: its caption and a smaller text next to it."""

    title: str
    svg: Markup
    note: str = ""
    group: str = ""


@dataclass(frozen=True)
class PlotGroup:
    """Plots of one model and training set, or of one method; `details` are folded away."""

    title: str
    plots: tuple[Plot, ...]
    details: tuple[Plot, ...] = ()
    note: str = ""
    group: str = ""


def result_plots(section: Section) -> list[PlotGroup]:
    """Per model: the micro average, its costs, and each task separately."""
    found = []
    for model, methods in section.rows.items():
        runs = [run for method in methods for run in method.runs]
        if not runs:
            continue
        title = f"{model} trained on {section.train_set}, {section.suite} tasks"
        micro = partial(RunResult.micro, suite=section.suite)
        rows = best_first(runs, section.suite)
        plots = [_methods("Micro avg.", title, rows, micro)]
        points = cost_points(rows, section.suite)
        for panel in measured_panels(points):
            with styled_figure(WIDE, 3.8) as figure:
                axes = figure.add_axes((0.11, 0.12, 0.87, 0.86))
                axes.set_ylabel("accuracy (%)")
                draw_panels(figure, {axes: panel}, points)
                name = f"Accuracy and {panel.label}"
                plots.append(Plot(name, svg(figure, f"{name}, {title}")))
        tasks = []
        for task in section.tasks if len(section.tasks) > 1 else ():
            accuracy = partial(RunResult.accuracy, task=task.name)
            tasks.append(_methods(task.title, title, rows, accuracy))
        found.append(PlotGroup(title, tuple(plots), tuple(tasks)))
    return found


def _methods(name: str, title: str, rows: Any, value: Any) -> Plot:
    with styled_figure(WIDE, methods_height(rows), "constrained") as figure:
        draw_methods(figure.subplots(), rows, value)
        return Plot(name, svg(figure, f"{name} of {title}"), "mean, seeds, one standard deviation")


def loss_plots(study: StudyResults) -> list[PlotGroup]:
    """A panel per method with a curve per seed, all panels of a group on the same axes."""
    found = []
    for title, runs in _groups(study):
        records = [(run, read_jsonl(RunFolder(study.folder / run.folder).metrics)) for run in runs]
        losses = [v for _, r in records for key, *_ in CURVES for _, v in loss_series(r, key)]
        if not losses:
            continue
        steps = max(record["step"] for _, lines in records for record in lines)
        plots = []
        for method in dict.fromkeys(run.title for run in runs):
            own = [(run, lines) for run, lines in records if run.title == method]
            with styled_figure(TILE, 1.75) as figure:
                axes = figure.add_axes((0.13, 0.15, 0.84, 0.8))
                _draw_losses(axes, own)
                scale_losses(axes, losses)
                axes.set(xlim=(0, steps), ylim=(axes.get_ylim()[0], 1.03 * max(losses)))
                axes.set_xticks([0, steps], ["0", f"{steps:,} steps"])
                axes.xaxis.get_ticklabels()[-1].set_ha("right")
                image = svg(figure, f"Loss of {method}, {title}")
            plots.append(Plot(method, image, _last_losses(own), own[0][0].group))
        found.append(PlotGroup(title, tuple(plots)))
    return found


def _draw_losses(axes: Any, runs: Sequence[tuple[RunResult, list[dict[str, Any]]]]) -> None:
    for run, records in runs:
        for key, name, style in CURVES:
            if points := thin(loss_series(records, key), MAX_POINTS):
                looks = {"color": GROUPS[run.group][1]} | style
                axes.plot(*zip(*points, strict=True), **looks, gid=f"seed {run.seed}: {name}")
    axes.grid(axis="y", color=GRID)
    remove_frame(axes)


def _last_losses(runs: Sequence[tuple[RunResult, list[dict[str, Any]]]]) -> str:
    """The last training loss and the lowest validation loss, means over the seeds."""
    last = [series[-1][1] for _, records in runs if (series := loss_series(records, "loss"))]
    best = [min(v for _, v in s) for _, records in runs if (s := loss_series(records, "eval_loss"))]
    texts = [f"ends at {format_number(sum(last) / len(last))}"] if last else []
    texts += [f"validation {format_number(sum(best) / len(best))}"] if best else []
    return ", ".join(texts) or "no finite loss"


def thin(points: Sequence[Any], most: int) -> list[Any]:
    """At most `most` points, evenly spaced, the last one among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def layer_plots(study: StudyResults) -> list[tuple[str, list[PlotGroup]]]:
    """By model and training set: per method that chooses layers, all its seeds and each one."""
    found = []
    for title, runs in _groups(study):
        histories = [(r, read_jsonl(RunFolder(study.folder / r.folder).dls_history)) for r in runs]
        histories = [(run, records) for run, records in histories if records]
        methods = []
        for method in dict.fromkeys(run.title for run, _ in histories):
            own = {run.seed: records for run, records in histories if run.title == method}
            group = next(run.group for run, _ in histories if run.title == method)
            every = [record for records in own.values() for record in records]
            plots = [_layers(f"All seeds of {method}, {title}", every, draw_shares)]
            for seed, records in own.items():
                shown = thin(records, MAX_CHOICES)
                note = f"{len(records)} choices" + (f", {len(shown)} shown" * (shown != records))
                plots.append(_layers(f"Seed {seed} of {method}, {title}", shown, draw_map, note))
            methods.append(PlotGroup(method, tuple(plots), note=summarize(every), group=group))
        if methods:
            found.append((title, methods))
    return found


def _layers(label: str, records: Sequence[Any], draw: Any, note: str = "share of choices") -> Plot:
    layers = len(records[0]["scores"])
    height = 0.35 + min(0.3, max(0.09, 1.7 / layers)) * layers
    with styled_figure(TILE, height) as figure:
        axes = figure.add_axes((0.1, 0.25 / height, 0.86, 1 - 0.35 / height))
        draw(axes, records)
        axes.set(title="", xlabel="", ylim=(-0.5, layers - 0.5))
        axes.set_yticks(range(0, layers, math.ceil(layers / MAX_LAYER_TICKS)))
        if draw is draw_map:
            steps = [str(records[i]["step"]) for i in (0, -1)]
            axes.set_xticks([0, len(records) - 1], [f"step {steps[0]}", steps[1]])
        else:
            axes.set_xticks([0, 50, 100], ["0", "50 %", "100 %"])
        remove_frame(axes)
        return Plot(label.partition(" of ")[0], svg(figure, label), note)


def _groups(study: StudyResults) -> list[tuple[str, list[RunResult]]]:
    return [
        (f"{model} trained on {train_set}", runs)
        for model in study.names("model")
        for train_set in study.names("train_set")
        if (runs := study.select(model=model, train_set=train_set))
    ]
