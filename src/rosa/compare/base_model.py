"""An adapter's scores beside those of its base model, from the folders of two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.compare.significance import bootstrap
from rosa.errors import RosaError
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.results import format_interval
from rosa.models.identity import is_same_model

COLUMNS = (
    *(Column("questions", 0), Column("base"), Column("adapter")),
    *(Column("difference", signed=True), Column("95 % interval")),
)
MUST_AGREE = ("protocol", "num_beams")
MAY_DIFFER = ("dtype", "quantization")


def check_base_results(folder: str | Path, base: str) -> None:
    """Raises RosaError unless `folder` holds a finished evaluation of the model `base`."""
    run = _read(Path(folder))
    if run.get("adapter"):
        raise RosaError(f"{folder} holds scores of the adapter {run['adapter']}, not of its base")
    if not is_same_model(str(run.get("model")), base):
        raise RosaError(f"{folder} holds scores of {run.get('model')}; the base model is {base}")


def base_table(base: str | Path, adapter: str | Path) -> Table:
    """Accuracy of base and adapter on the tasks whose questions are the same in both folders.

    The interval is that of the difference, by `bootstrap`.

    Raises:
        RosaError: the folders hold other models or protocols, or no task with equal questions.
    """
    before, after = _read(Path(base)), _read(Path(adapter))
    check_base_results(base, str(after["model"]))
    for key in MUST_AGREE:
        if before.get(key) != after.get(key):
            raise RosaError(
                f"{base} was scored with {key} {before.get(key)}, {adapter} with {after.get(key)}"
            )
    rows, left_out = [], []
    for score in EvaluationFolder(Path(adapter)).read_json("results.json")["tasks"]:
        name = score["name"]
        if before["tasks"].get(name) != after["tasks"][name]:
            left_out.append(score["title"])
            continue
        rows.append(_row(score["title"], _correct(base, name), _correct(adapter, name)))
    if not rows:
        raise RosaError(
            f"{base} has no task with the same questions (data, prompt, limit, seed) as {adapter}"
        )
    notes = [f"{title}: the base was asked other questions, or none." for title in left_out]
    notes += [
        f"The {key} of the base is {before.get(key)}, with the adapter {after.get(key)}."
        for key in MAY_DIFFER
        if before.get(key) != after.get(key)
    ]
    title = "Accuracy in percent, base model and adapter"
    return Table("base", title, "task", COLUMNS, (Block("", tuple(rows)),), tuple(notes))


def _row(title: str, before: dict[int, bool], after: dict[int, bool]) -> Row:
    asked = sorted(before.keys() & after.keys())
    old, new = (np.array([side[i] for i in asked], float) for side in (before, after))
    interval = bootstrap([new], [old])
    shown = None
    if interval.low is not None and interval.high is not None:
        shown = format_interval(interval.low, interval.high, "+")
    means = [100 * float(side.mean()) for side in (old, new)]
    return Row(title, tuple(map(Cell, (len(asked), *means, means[1] - means[0], shown))))


def _read(folder: Path) -> dict[str, Any]:
    """`run.json` of a finished evaluation."""
    files = EvaluationFolder(folder)
    files.read_json("results.json")
    return files.read_json("run.json")


def _correct(folder: str | Path, task: str) -> dict[int, bool]:
    answers = EvaluationFolder(Path(folder)).read_answers(task)
    return {index: record["correct"] for index, record in answers.items()}
