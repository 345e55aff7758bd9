"""The picture of a run's loss; that of its layers is `rosa.train.layer_plot`."""

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


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
