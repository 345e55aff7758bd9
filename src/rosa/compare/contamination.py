"""Test questions that are in the training data, found in the data itself.

    overlap(load_training_rows("math_10k.json"), task, load_examples(task, "dataset"))
    # Overlap(matches=141, of=600)

Two questions are the same where their texts are, white space and case aside: "in the box ?" is
"in the box?". Nothing else is forgiven, so a reworded question is not found. The question is
instruction and input, without the template or the worked examples around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.common.files import atomic_write
from rosa.data.prompts import instruction_prompt
from rosa.data.sources import load_training_rows
from rosa.errors import RosaError
from rosa.evaluate.tasks import Example, load_examples, resolve_tasks

if TYPE_CHECKING:
    from rosa.compare.results import StudyResults

OVERLAP = "overlap.json"
# What stands before the instruction, between it and the input, and after.
_WITH_INPUT = re.split("[\0\1]", instruction_prompt("\0", "\1"))
_WITHOUT_INPUT = re.split("[\0\1]", instruction_prompt("\0").replace("\0", "\0\1"))
OverlapTable = dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Overlap:
    """How many of a test set's questions the training data holds."""

    matches: int
    of: int


def overlap(rows: Iterable[dict[str, Any]], examples: Iterable[Example]) -> Overlap:
    """Count the examples whose question is that of a training row.

    Args:
        rows: training rows in any form that `rosa train` reads; of a conversation every user turn
            counts as a question.
        examples: a test set.
    """
    seen = {normalized(question) for row in rows for question in questions(row)}
    asked = [normalized(f"{e.question.instruction} {e.question.input}") for e in examples]
    return Overlap(sum(question in seen for question in asked), len(asked))


def normalized(text: str) -> str:
    """The text without white space and case: what two questions must share to be the same.

    >>> normalized("How many are in the box ?") == normalized(" how many are in\\nthe box?")
    True
    """
    return "".join(text.split()).casefold()


def questions(row: dict[str, Any]) -> list[str]:
    """What a training row asks; empty where it asks nothing."""
    if "messages" in row:
        turns = row["messages"] if isinstance(row["messages"], list) else []
        texts = [t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"]
    elif "instruction" in row:
        texts = [f"{row['instruction']} {row.get('input') or ''}"]
    else:
        texts = [row.get("prompt")]
    found = [without_template(text) for text in texts if isinstance(text, str)]
    return [question for question in found if normalized(question)]


def without_template(prompt: str) -> str:
    """Instruction and input of a text in the suite's template; any other text as it is."""
    for head, middle, tail in (_WITH_INPUT, _WITHOUT_INPUT):
        if prompt.startswith(head) and prompt.endswith(tail):
            return prompt[len(head) : -len(tail)].replace(middle, " ", 1)
    return prompt


def check_overlap(study: StudyResults) -> OverlapTable:
    """Compare every training set of a study with the tests asked after it; keeps `overlap.json`.

    All rows of the training files count, those too that a run's `limit` or `validation` left out,
    and all questions of the test set, whichever of them were asked.

    Returns:
        `{training set: {task: {"matches": n, "of": m}}}`.

    Raises:
        RosaError: data of the grid cannot be read.
    """
    evaluate = study.grid.get("evaluate") or {}
    found: OverlapTable = {}
    for name, values in study.grid.get("training_sets", {}).items():
        sources = values["data"]
        rows = _rows([sources] if isinstance(sources, str) else sources)
        found[name] = {
            task.name: asdict(overlap(rows, load_examples(task, evaluate.get("data"))))
            for task in resolve_tasks(values["tasks"])
        }
    atomic_write(study.folder / OVERLAP, json.dumps(found, indent=2) + "\n")
    return found


def _rows(sources: Sequence[str]) -> list[dict[str, Any]]:
    return [row for source in sources for row in load_training_rows(source)]


def load_overlap(folder: str | Path) -> OverlapTable | None:
    """What `check_overlap` found; None where it has not been run.

    Raises:
        RosaError: the file is damaged.
    """
    file = Path(folder) / OVERLAP
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RosaError(f"{file} cannot be read ({error}); delete it and check again") from None
