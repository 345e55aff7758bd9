"""The examples of a task: its test set in a local file, in the package, or on the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rosa.data.prompts import Question, chat_turns, read_question, render
from rosa.data.row_files import read_rows, text_field
from rosa.data.sources import TOY_DATA
from rosa.errors import RosaError, errors_as
from rosa.evaluate.answer_filters import FILTERS
from rosa.evaluate.tasks import HubSource, Task, built_in_tasks


@dataclass(frozen=True)
class Example:
    """One question: its row in the test set (from 0), the prompt, and the label.

    The prompt of a `chat` task is the user's turn, before the chat template is applied.
    """

    index: int
    prompt: str
    label: str
    question: Question = field(default=Question(""), repr=False)


def load_examples(task: Task, data: str | Path | None = None) -> list[Example]:
    """Every example of `task`, with checked labels.

    Rows come from the package (toy tasks), from the folder `data` in LLM-Adapters' layout
    (`<name>/test.json`), from the folder of the task's own YAML, or from the hub.
    """
    file = data_file(task, data)
    if file is None and data is not None:
        there = [t.name for t in built_in_tasks().values() if (Path(data) / t.file).is_file()]
        known = ", ".join(there) or "no known test set (LLM-Adapters' layout: <name>/test.json)"
        raise RosaError(
            f"there is no {Path(data) / task.file} for the task {task.name}; {data} holds {known}"
        )
    rows, source = _hub_rows(task) if file is None else (read_rows(file), str(file))
    return [_example(task, row, source, number) for number, row in enumerate(rows, 1)]


def data_file(task: Task, data: str | Path | None, name: str | None = None) -> Path | None:
    """The local file of the test set, or the file `name` in its folder; None if there is none."""
    path = Path(task.file).with_name(name or Path(task.file).name)
    if task.packaged:
        return TOY_DATA / path
    folders = [task.folder] if data is None else [Path(data), task.folder]
    return next((folder / path for folder in folders if (folder / path).is_file()), None)


def _example(task: Task, row: dict[str, Any], source: str, number: int) -> Example:
    question = read_question(row, source, number)
    answer = row.get("answer")
    is_number = isinstance(answer, (int, float)) and not isinstance(answer, bool)
    label = str(answer) if is_number else text_field(row, "answer", source, number)
    if not FILTERS[task.filter].is_label(label, task.answers):
        known = ", ".join(task.answers) or "numbers"
        raise RosaError(
            f"{source}, row {number}: the label {label!r} is unknown to the task {task.name}; its "
            f"labels are {known}"
        )
    chat = task.prompt == "chat"
    prompt = chat_turns(question)[0]["content"] if chat else render(task.prompt, question)
    return Example(number - 1, prompt, label, question)


def _hub_rows(task: Task) -> tuple[list[dict[str, Any]], str]:
    hub = task.hub
    if hub is None:
        raise RosaError(
            f"no hub data set is known to hold exactly the test set of {task.name}; give "
            f"--data FOLDER with {task.file} in it (LLM-Adapters' `dataset` folder)"
        )
    from datasets import load_dataset

    source = f"{hub.path} ({hub.split})"
    with errors_as(f"cannot load {source} for the task {task.name} (--data FOLDER needs no hub)"):
        raw = load_dataset(hub.path, hub.config, split=hub.split, revision=hub.revision)
    return suite_rows(hub, raw, source), source


def suite_rows(hub: HubSource, raw: Iterable[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Hub rows in the suite's wording, by the task's two templates."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    with errors_as(f"the templates of {source} do not fit its rows"):
        templates = {
            "instruction": environment.from_string(hub.instruction),
            "answer": environment.from_string(hub.answer),
        }
        return [{key: value.render(row) for key, value in templates.items()} for row in raw]


def fingerprint(task: Task, examples: Sequence[Example]) -> str:
    """A hash of everything that determines a task's scores: its rules and its questions."""
    rules = [task.filter, task.answers, task.prompt, task.max_new_tokens]
    content = json.dumps([rules, [(e.prompt, e.label) for e in examples]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
