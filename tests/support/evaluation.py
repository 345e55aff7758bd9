"""Small test sets, and `evaluate` with its options as keywords."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rosa.evaluate.options import EvaluationOptions
from rosa.evaluate.results import Results
from rosa.evaluate.run import evaluate
from rosa.evaluate.tasks import Task, resolve_tasks


def load_task(name: str) -> Task:
    """The built-in task `name`, or the one in the YAML file `name`."""
    (task,) = resolve_tasks([name])
    return task


def write_test_sets(
    folder: Path, labels: Mapping[str, Sequence[str]], rows: int, question: Callable[[int], str]
) -> Path:
    """`<task>/test.json` of each task: `rows` questions, whose labels take turns."""
    for name, answers in labels.items():
        content = [
            {"instruction": question(i), "answer": answers[i % len(answers)]} for i in range(rows)
        ]
        (folder / name).mkdir()
        (folder / name / "test.json").write_text(json.dumps(content))
    return folder


def evaluate_with(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Any],
    *,
    out: Path | None = None,
    run: Mapping[str, Any] | None = None,
    trained_on: Sequence[str] = (),
    **options: Any,
) -> Results:
    """`evaluate`, its options given one by one."""
    asked = EvaluationOptions(**options)
    return evaluate(model, tokenizer, tasks, asked, out=out, run=run, trained_on=trained_on)


def read_answers(folder: Path, task: str) -> list[dict[str, Any]]:
    """The lines of `<task>.jsonl`."""
    return [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()]
