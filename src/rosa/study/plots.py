"""The two pictures of a run: its loss, and which layers were chosen when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WIDE = 20  # a loss that falls further than this is drawn on a logarithmic axis
INK, QUIET = "#1f4e79", "#c55a11"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; none if it does not exist."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def draw_loss(metrics: Path, picture: Path) -> bool:
    """Training and validation loss against the step; False if there is nothing to draw."""
    records = read_jsonl(metrics)
    train = [(r["step"], r["loss"]) for r in records if "loss" in r]
    held_out = [(r["step"], r["eval_loss"]) for r in records if "eval_loss" in r]
    if not train:
        return False
    figure, axes = _figure(7, 4)
    axes.plot(*zip(*train, strict=True), color=INK, label="training")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color=QUIET, ms=4, label="validation")
        axes.legend(frameon=False)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per token)")
    losses = [loss for _, loss in train]
    if min(losses) > 0 and max(losses) > WIDE * min(losses):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
    axes.grid(alpha=0.25)
    figure.savefig(picture, dpi=130)
    return True


def draw_layers(history: Path, picture: Path) -> bool:
    """Scores as a steps x layers map, a dot on each chosen layer; False without a choice.

    Scores are shown relative to the largest of their step: their scale falls with the loss, and
    the choice depends on their order alone.
    """
    records = read_jsonl(history)
    if not records:
        return False
    layers = len(records[0]["scores"])
    shares = [[s / (max(r["scores"]) or 1.0) for s in r["scores"]] for r in records]
    figure, axes = _figure(max(5.0, 2.5 + 0.28 * len(records)), max(3.0, 1.6 + 0.22 * layers))
    grid = axes.imshow(
        list(zip(*shares, strict=True)), aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=1
    )
    for mode, marker, colour in (("exploit", "o", QUIET), ("explore", "D", "#111111")):
        dots = [(x, y) for x, r in enumerate(records) if r["mode"] == mode for y in r["selected"]]
        if dots:
            axes.scatter(*zip(*dots, strict=True), s=26, marker=marker, color=colour, label=mode)
    ticks = range(0, len(records), max(1, len(records) // 12))
    axes.set_xticks(list(ticks), [str(records[i]["step"]) for i in ticks])
    axes.set_yticks(range(0, layers, max(1, layers // 16)))
    axes.set(xlabel="optimizer step of the choice", ylabel="layer")
    figure.colorbar(grid, label="score / largest of the step")
    axes.legend(
        title="chosen by", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False
    )
    figure.savefig(picture, dpi=130)
    return True


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
