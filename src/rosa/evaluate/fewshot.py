"""Worked examples before the question: which rows they are, and that none of them is a test row."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rosa.data.json_rows import read_rows, text_field
from rosa.data.prompts import Question, Shot
from rosa.errors import RosaError
from rosa.evaluate.answers import FILTERS
from rosa.evaluate.tasks import Example, Task, data_file


def draw_shots(
    task: Task, tests: Iterable[Example], num_fewshot: int, source: Path, seed: int = 0
) -> tuple[Shot, ...]:
    """`num_fewshot` examples for `task`, the same before each of its questions.

    They are a seeded draw from the rows of `source` that are labelled as this task's are. Rows
    whose question is among `tests`, the whole test set, are left out.

    Raises:
        RosaError: there is no such file, a row lacks its response (`output`), or too few rows are
            left.
    """
    rows = read_rows(source)
    fitting = [(number, row) for number, row in enumerate(rows, 1) if _has_label(task, row)]
    asked = {_key(example.question) for example in tests}
    shots = [_shot(row, str(source), number) for number, row in fitting]
    unseen = [shot for shot in shots if _key(shot.question) not in asked]
    if len(unseen) < num_fewshot:
        raise RosaError(
            f"{source} gives {len(unseen)} examples for {task.name} where --num_fewshot wants "
            f"{num_fewshot}: of its {len(rows)} rows {len(fitting)} have a label of this task, and "
            f"{len(fitting) - len(unseen)} of those are in the test set; give other training rows "
            "with --fewshot_data"
        )
    return tuple(random.Random(seed).sample(unseen, num_fewshot))


def training_file(task: Task, file: str | Path | None, data: str | Path | None) -> Path:
    """Where the worked examples of `task` come from."""
    if file is not None:
        return Path(file)
    beside = data_file(task, data, name="train.json")
    if beside is None:
        raise RosaError(
            f"there are no training rows for {task.name} beside its test set; give a local file of "
            "them with --fewshot_data"
        )
    return beside


def _has_label(task: Task, row: dict[str, Any]) -> bool:
    return FILTERS[task.filter].is_label(str(row.get("answer", "")), task.answers)


def _shot(row: dict[str, Any], source: str, number: int) -> Shot:
    response = text_field(row, "output", source, number)
    if not response.strip():
        raise RosaError(f"{source}, row {number}: the response is empty; remove the row")
    context = text_field(row, "input", source, number) if row.get("input") else ""
    return Shot(Question(text_field(row, "instruction", source, number), context), response)


def _key(question: Question) -> str:
    """Equal for questions that differ in spacing or case alone."""
    return " ".join(f"{question.instruction} {question.input}".lower().split())
