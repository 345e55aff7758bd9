"""Figures 3 and 4 of the paper from a study's results, next to the paper's own.

Each half has its own axis: a study on another model or other data is not the paper's, so only the
shapes can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rosa.assets.paper import paper_data
from rosa.common.plot_style import canvas
from rosa.compare.grid import parse_method_entry
from rosa.compare.results import StudyResults
from rosa.compare.statistics import MeanStd
from rosa.errors import RosaError
from rosa.models.loading import short_name

STUDY_COLOR, PAPER_COLOR = "#0f6ba8", "#7a8794"
MICRO = "micro-average, %"
MIN_RANGE = 2.0  # percentage points of an axis, so that small differences look small


def draw_figure3(study: StudyResults, model: str, picture: Path) -> None:
    """Accuracy over k_ratio, as a PNG.

    Raises:
        RosaError: no run of a k_ratio has finished.
    """
    ours = accuracy_by_k_ratio(study, model)
    printed = {row["k_ratio"]: _printed(row) for row in paper_data("table4")["k_ratio"]}
    _check_has_runs(ours, "figure 3", study)
    title = "Figure 3: accuracy over k_ratio, the share of layers that are trained"
    with canvas(9.6, 4.2, title, _conditions(study, model)) as figure:
        for axes, name, points, color in _halves(figure, printed, ours, model):
            _curve(axes, points, color)
            axes.set(title=name, xlabel="k_ratio", ylabel=MICRO)
        figure.savefig(picture)


def draw_figure4(study: StudyResults, model: str, picture: Path) -> None:
    """RoSA and the paper's four variants as bars, as a PNG.

    Raises:
        RosaError: none of them has a finished run.
    """
    rows = paper_data("table4")["ablation"]
    printed = {row["title"]: _printed(row) for row in rows}
    ours = {row["title"]: p for row in rows if (p := micro_over_seeds(study, model, row["method"]))}
    _check_has_runs(ours, "figure 4", study)
    title = "Figure 4: RoSA and its ablations"
    with canvas(9.6, 3.6, title, _conditions(study, model)) as figure:
        for axes, name, points, color in _halves(figure, printed, ours, model):
            _bars(axes, points, color)
            axes.set(title=name, xlabel=MICRO)
        figure.savefig(picture)


def accuracy_by_k_ratio(study: StudyResults, model: str) -> dict[float, MeanStd]:
    """Micro-averages of the grid's RoSA entries by k_ratio; only of those with a finished run."""
    shared = study.grid.get("recipe", {}).get("dls") or {}
    found = {}
    for entry in map(parse_method_entry, study.grid.get("methods", [])):
        if entry.recipe["method"] != "rosa":
            continue
        dls = {"k_ratio": 0.5} | shared | (entry.recipe.get("dls") or {})
        if value := micro_over_seeds(study, model, entry.name):
            found[float(dls["k_ratio"])] = value
    return dict(sorted(found.items()))


def micro_over_seeds(study: StudyResults, model: str, method: str) -> MeanStd | None:
    """A method's micro-average over seeds, in percent; None without a finished run."""
    values = [run.micro() for run in study.select(model=model, method=method)]
    return MeanStd.of(values) if values else None


def _printed(row: dict[str, Any]) -> MeanStd:
    return MeanStd(row["micro"], None, 1)


def _check_has_runs(points: Mapping[Any, MeanStd], figure: str, study: StudyResults) -> None:
    if not points:
        raise RosaError(f"{study.folder} has no finished run for {figure}; see its failures")


def _conditions(study: StudyResults, model: str) -> str:
    """The subtitle: what both halves show, and over how many seeds."""
    runs = study.select(model=model)
    seeds = {run.seed for run in runs}
    sets = ", ".join(dict.fromkeys(run.train_set for run in runs))
    over = f"{len(seeds)} seeds ± standard deviation" if len(seeds) > 1 else "one seed"
    return (
        "left: as printed in the paper, trained on Commonsense15K; right: "
        f"{short_name(model)} trained on {sets}, {over}"
    )


def _halves(
    figure: Any, printed: Any, ours: Any, model: str
) -> Iterator[tuple[Any, str, Any, str]]:
    left, right = figure.subplots(1, 2)
    yield left, "the paper, Qwen2.5-7B", printed, PAPER_COLOR
    yield right, f"this study, {short_name(model)}", ours, STUDY_COLOR


def _curve(axes: Any, points: Mapping[float, MeanStd], color: str) -> None:
    from matplotlib.patheffects import withStroke

    x = list(points)
    means, stds = _means_and_stds(points)
    axes.errorbar(x, means, stds if any(stds) else None, fmt="o-", color=color, capsize=3)
    for ratio, mean, std in zip(x, means, stds, strict=True):
        axes.annotate(
            f"{mean:.1f}", (ratio, mean + std), (0, 6), textcoords="offset points",
            ha="center", zorder=4, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    low = min(mean - std for mean, std in zip(means, stds, strict=True))
    high = max(mean + std for mean, std in zip(means, stds, strict=True))
    span = max(high - low, MIN_RANGE)
    axes.set_ylim(max(low - 0.15 * span, -0.05 * span), high + 0.2 * span)
    axes.set_xticks(x, [f"{ratio:.2f}" for ratio in x])
    axes.margins(x=0.08)
    axes.grid(axis="y", alpha=0.25)


def _bars(axes: Any, points: Mapping[str, MeanStd], color: str) -> None:
    means, stds = _means_and_stds(points)
    colors = [color] + [f"{color}99"] * (len(means) - 1)  # RoSA itself in full color
    xerr = stds if any(stds) else None
    axes.barh(list(points), means, xerr=xerr, ecolor="#16202b", color=colors, height=0.62)
    axes.invert_yaxis()
    longest = max(mean + std for mean, std in zip(means, stds, strict=True)) or 1.0
    for row, (mean, std) in enumerate(zip(means, stds, strict=True)):
        axes.text(mean + std + 0.015 * longest, row, f"{mean:.1f}", va="center")
    axes.set_xlim(0, 1.14 * longest)


def _means_and_stds(points: Mapping[Any, MeanStd]) -> tuple[list[float], list[float]]:
    return [p.mean for p in points.values()], [p.std or 0.0 for p in points.values()]
