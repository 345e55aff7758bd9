"""Test questions that are in the training data, found in the data itself.

    count_overlap(load_training_rows("math_10k.json"), load_examples(task, "dataset"))
    # Overlap(matches=141, of=600)

Two questions are the same if their texts are, white space and case aside: "in the box ?" is
"in the box?". A reworded question is not found. The question is instruction and input, without the
template or the few-shot examples around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rosa.common.files import atomic_write
from rosa.compare.grid import Grid
from rosa.data.prompts import instruction_prompt, normalize_question
from rosa.data.sources import load_training_rows
from rosa.errors import RosaError
from rosa.evaluate.examples import Example, load_examples
from rosa.evaluate.tasks import resolve_tasks

OVERLAP = "overlap.json"
# The template's text before the instruction, between it and the input, and after.
_WITH_INPUT = re.split("[\0\1]", instruction_prompt("\0", "\1"))
_WITHOUT_INPUT = re.split("[\0\1]", instruction_prompt("\0").replace("\0", "\0\1"))
OverlapTable = dict[str, dict[str, dict[str, int]]]  # training set -> task -> Overlap


@dataclass(frozen=True)
class Overlap:
    """How many questions of a test set are in the training data."""

    matches: int
    of: int


def count_overlap(rows: Iterable[dict[str, Any]], examples: Iterable[Example]) -> Overlap:
    """Count the examples whose question is that of a training row.

    Args:
        rows: training rows in any form that `rosa train` reads; every user turn of a conversation
            counts as a question.
        examples: a test set.
    """
    seen = {normalize_question(question) for row in rows for question in row_questions(row)}
    asked = [e.question.normalized for e in examples]
    return Overlap(sum(question in seen for question in asked), len(asked))


def row_questions(row: dict[str, Any]) -> list[str]:
    """The questions of a training row; empty if it has none."""
    if "messages" in row:
        turns = row["messages"] if isinstance(row["messages"], list) else []
        texts = [t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"]
    elif "instruction" in row:
        texts = [f"{row['instruction']} {row.get('input') or ''}"]
    else:
        texts = [row.get("prompt")]
    found = [strip_template(text) for text in texts if isinstance(text, str)]
    return [question for question in found if normalize_question(question)]


def strip_template(prompt: str) -> str:
    """Instruction and input of a prompt in the instruction template; any other text unchanged."""
    for head, middle, tail in (_WITH_INPUT, _WITHOUT_INPUT):
        if prompt.startswith(head) and prompt.endswith(tail):
            return prompt[len(head) : -len(tail)].replace(middle, " ", 1)
    return prompt


def write_overlap(grid: Grid) -> OverlapTable:
    """Compare every training set of a study with its tasks' test sets, and write `overlap.json`.

    All rows of the training files and all questions of the test sets count, also those that
    `limit` or `validation` leave out.

    Raises:
        RosaError: data of the grid cannot be read.
    """
    found: OverlapTable = {}
    for name, train_set in grid.training_sets.items():
        columns = grid.columns(train_set)
        rows = [row for source in train_set.sources for row in load_training_rows(source, columns)]
        found[name] = {
            task.name: asdict(count_overlap(rows, load_examples(task, grid.evaluate.data)))
            for task in resolve_tasks(train_set.tasks)
        }
    atomic_write(Path(grid.output_dir) / OVERLAP, json.dumps(found, indent=2) + "\n")
    return found


def load_overlap(folder: str | Path) -> OverlapTable | None:
    """The study's `overlap.json`; None if it has none. Raises RosaError if it is damaged."""
    file = Path(folder) / OVERLAP
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RosaError(
            f"{file} cannot be read ({error}); delete it, and rerun `rosa compare` to write it"
        ) from None
