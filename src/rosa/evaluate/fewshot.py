"""Worked examples before each question: training rows whose questions are not in the test set."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rosa.data.prompts import Shot, read_question
from rosa.data.row_files import read_rows, text_field
from rosa.errors import RosaError
from rosa.evaluate.answer_filters import FILTERS
from rosa.evaluate.examples import Example, data_file
from rosa.evaluate.tasks import Task


def draw_shots(
    task: Task, test_set: Iterable[Example], num_fewshot: int, source: Path, seed: int = 0
) -> tuple[Shot, ...]:
    """`num_fewshot` worked examples for `task`, the same before each of its questions.

    A seeded draw from the rows of `source` whose label is one of the task's and whose question is
    not in `test_set`, the complete one. Raises RosaError if too few rows are left.
    """
    rows = read_rows(source)
    fitting = [(number, row) for number, row in enumerate(rows, 1) if _has_label(task, row)]
    asked = {example.question.normalized for example in test_set}
    shots = [_shot(row, str(source), number) for number, row in fitting]
    unseen = [shot for shot in shots if shot.question.normalized not in asked]
    if len(unseen) < num_fewshot:
        raise RosaError(
            f"{source} has {len(unseen)} worked examples for {task.name}, and --num_fewshot is "
            f"{num_fewshot}: of its {len(rows)} rows {len(fitting)} have a label of this task, and "
            f"{len(fitting) - len(unseen)} of those are in the test set; give other training rows "
            "with --fewshot_data"
        )
    return tuple(random.Random(seed).sample(unseen, num_fewshot))


def training_file(task: Task, file: str | Path | None, data: str | Path | None) -> Path:
    """The file that the worked examples of `task` are drawn from."""
    if file is not None:
        return Path(file)
    found = data_file(task, data, name="train.json")
    if found is None:
        raise RosaError(
            f"there is no train.json next to the test set of {task.name}; give a file of training "
            "rows with --fewshot_data"
        )
    return found


def _has_label(task: Task, row: dict[str, Any]) -> bool:
    return FILTERS[task.filter].is_label(str(row.get("answer", "")), task.answers)


def _shot(row: dict[str, Any], source: str, number: int) -> Shot:
    response = text_field(row, "output", source, number)
    if not response.strip():
        raise RosaError(f"{source}, row {number}: the response is empty; remove the row")
    return Shot(read_question(row, source, number), response)
