"""Figures 3 and 4 of the paper from a study's results, next to the paper's own.

Each half has its own axis: a study on another model or other data is not the paper's, so only the
shapes can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rosa.assets.paper_numbers import paper_data
from rosa.common.plot_style import INK, canvas, percent_axis
from rosa.compare.grid import parse_method_entry
from rosa.compare.results import StudyResults
from rosa.compare.significance import MeanStd
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError
from rosa.models.loading import short_name

STUDY_COLOR, PAPER_COLOR = "#0f6ba8", "#7a8794"
Points = Mapping[Any, MeanStd]


def draw_figure3(study: StudyResults, model: str, picture: Path) -> None:
    """Accuracy over k_ratio, as a PNG; raises RosaError without a finished run."""
    printed = {row["k_ratio"]: _printed(row) for row in paper_data("table4")["k_ratio"]}
    title = "Figure 3: accuracy over k_ratio, the share of layers that are trained"
    _draw(study, model, picture, title, _curve, printed, accuracy_by_k_ratio(study, model))


def draw_figure4(study: StudyResults, model: str, picture: Path) -> None:
    """RoSA and the paper's four variants as a PNG; raises RosaError without a finished run."""
    rows = paper_data("table4")["ablation"]
    printed = {row["title"]: _printed(row) for row in rows}
    ours = {row["title"]: p for row in rows if (p := micro_over_seeds(study, model, row["method"]))}
    _draw(study, model, picture, "Figure 4: RoSA and its ablations", _bars, printed, ours)


def accuracy_by_k_ratio(study: StudyResults, model: str) -> dict[float, MeanStd]:
    """Micro-averages of the grid's RoSA entries by k_ratio; only of those with a finished run."""
    shared = {"k_ratio": DlsConfig().k_ratio} | (study.grid.get("recipe", {}).get("dls") or {})
    found = {}
    for entry in map(parse_method_entry, study.grid.get("methods", [])):
        if entry.recipe["method"] != "rosa":
            continue
        dls = shared | (entry.recipe.get("dls") or {})
        if value := micro_over_seeds(study, model, entry.name):
            found[float(dls["k_ratio"])] = value
    return dict(sorted(found.items()))


def micro_over_seeds(study: StudyResults, model: str, method: str) -> MeanStd | None:
    """A method's micro-average over seeds, in percent; None without a finished run."""
    values = [run.micro() for run in study.select(model=model, method=method)]
    return MeanStd.of(values) if values else None


def _printed(row: dict[str, Any]) -> MeanStd:
    return MeanStd(row["micro"], None, 1)


def _draw(
    study: StudyResults,
    model: str,
    picture: Path,
    title: str,
    draw: Callable[[Any, Points, str], None],
    printed: Points,
    ours: Points,
) -> None:
    """The paper's points on the left, the study's on the right."""
    if not ours:
        figure_name = title.split(":")[0].lower()
        raise RosaError(f"{study.folder} has no finished run for {figure_name}; see its failures")
    runs = study.select(model=model)
    seeds = {run.seed for run in runs}
    over = f"{len(seeds)} seeds ± standard deviation" if len(seeds) > 1 else "one seed"
    subtitle = (
        f"left: as printed in the paper, trained on Commonsense15K; right: {short_name(model)} "
        f"trained on {', '.join(dict.fromkeys(run.train_set for run in runs))}, {over}"
    )
    with canvas(9.6, 4.0, title, subtitle) as figure:
        left, right = figure.subplots(1, 2)
        draw(left, printed, PAPER_COLOR)
        left.set_title("the paper, Qwen2.5-7B")
        draw(right, ours, STUDY_COLOR)
        right.set_title(f"this study, {short_name(model)}")
        figure.savefig(picture)


def _curve(axes: Any, points: Points, color: str) -> None:
    from matplotlib.patheffects import withStroke

    means, stds = _means_and_stds(points)
    axes.errorbar(
        list(points), means, stds if any(stds) else None, fmt="o-", color=color, capsize=3
    )
    for ratio, mean, std in zip(points, means, stds, strict=True):
        axes.annotate(
            f"{mean:.1f}", (ratio, mean + std), (0, 6), textcoords="offset points",
            ha="center", zorder=4, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    pairs = list(zip(means, stds, strict=True))
    percent_axis(axes, "y", [mean + sign * std for mean, std in pairs for sign in (-1, 1)])
    axes.set_xticks(list(points), [f"{ratio:.2f}" for ratio in points])
    axes.set(xlabel="k_ratio", ylabel="micro-average, %")
    axes.margins(x=0.08)
    axes.grid(axis="y", alpha=0.25)


def _bars(axes: Any, points: Points, color: str) -> None:
    means, stds = _means_and_stds(points)
    colors = [color] + [f"{color}99"] * (len(means) - 1)  # RoSA itself in full color
    xerr = stds if any(stds) else None
    axes.barh(list(points), means, xerr=xerr, ecolor=INK, color=colors, height=0.62)
    axes.invert_yaxis()
    longest = max(mean + std for mean, std in zip(means, stds, strict=True)) or 1.0
    for row, (mean, std) in enumerate(zip(means, stds, strict=True)):
        axes.text(mean + std + 0.015 * longest, row, f"{mean:.1f}", va="center")
    axes.set(xlim=(0, 1.14 * longest), xlabel="micro-average, %")


def _means_and_stds(points: Points) -> tuple[list[float], list[float]]:
    return [p.mean for p in points.values()], [p.std or 0.0 for p in points.values()]
