"""Benchmark tasks: one small YAML file each, in `task_files/` or the user's own."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rosa.data.prompts import PROMPTS
from rosa.errors import RosaError, did_you_mean, errors_as
from rosa.evaluate.answer_filters import FILTERS, PROTOCOLS, PUBLISHED
from rosa.evaluate.results import TaskScore

TASK_FILES = Path(__file__).resolve().parent / "task_files"
PAPER_ORDER = (
    *("boolq", "piqa", "social_i_qa", "ARC-Challenge", "ARC-Easy", "openbookqa", "hellaswag"),
    *("winogrande", "MultiArith", "gsm8k", "AddSub", "AQuA", "SingleEq", "SVAMP", "mawps"),
)


@dataclass(frozen=True)
class HubSource:
    """The test set on the hub, and Jinja templates from its fields to the suite's wording."""

    path: str
    split: str
    instruction: str
    answer: str
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """One benchmark, as its YAML declares it.

    Attributes:
        name: its name for `--tasks`.
        title: its name in tables.
        suite: tasks of one suite are averaged together.
        size: examples in the published test set; 0 where that is not fixed.
        file: the test set inside the data folder, LLM-Adapters' JSON or JSONL.
        filter: the answer filter, a key of `FILTERS`.
        max_new_tokens: length of a response in tokens.
        answers: the labels, for filters that need them.
        prompt: the template around instruction and input, one of `PROMPTS`.
        packaged: the test set comes with the package.
        hub: the test set on the hub, where one with these rows is known.
        seen_in_training: training sets that hold the training part of this test.
        citation: the benchmark's authors.
        folder: the YAML's folder; data may be next to the YAML.
    """

    name: str
    title: str
    suite: str
    size: int
    file: str
    filter: str
    max_new_tokens: int
    answers: tuple[str, ...] = ()
    prompt: str = "alpaca"
    packaged: bool = False
    hub: HubSource | None = None
    seen_in_training: tuple[str, ...] = ()
    citation: str = ""
    folder: Path = field(default=TASK_FILES, compare=False)

    def parse(self, response: str, protocol: str = PUBLISHED) -> str | None:
        """The answer in `response` by the rules of `protocol`, or None."""
        return PROTOCOLS[protocol][self.filter].parse(response, self.answers)

    def early_stop(self, protocol: str = PUBLISHED) -> Callable[[str], bool] | None:
        """Whether a response so far fixes the answer; None if only a complete one can tell."""
        decided = PROTOCOLS[protocol][self.filter].decided
        return decided and (lambda response: decided(response, self.answers))

    def judged(self, record: dict[str, Any], protocol: str = PUBLISHED) -> dict[str, Any]:
        """`record` with the `prediction` in its response and whether that is `correct`."""
        prediction = self.parse(record["response"], protocol)
        correct = self.is_correct(prediction, record["label"])
        return {**record, "prediction": prediction, "correct": correct}

    def score(self, records: Sequence[Mapping[str, Any]], rows: int) -> TaskScore:
        """The score of `records`, from a test set of `rows` rows."""
        return TaskScore(
            name=self.name,
            title=self.title,
            suite=self.suite,
            correct=sum(record["correct"] for record in records),
            scored=len(records),
            unparsable=sum(record["prediction"] is None for record in records),
            rows=rows,
            size=self.size,
            seen_in_training=self.seen_in_training,
        )

    def is_correct(self, answer: str | None, label: str) -> bool:
        """Whether a parsed answer is the label; no answer never is."""
        return answer is not None and FILTERS[self.filter].equal(answer, label)


@functools.cache
def built_in_tasks() -> dict[str, Task]:
    """The package's benchmarks by name, in the order of the paper's tables, the toy tasks last."""
    tasks = [read_task(path) for path in sorted(TASK_FILES.glob("*.yaml"))]
    order = {name: rank for rank, name in enumerate(PAPER_ORDER)}
    return {t.name: t for t in sorted(tasks, key=lambda t: order.get(t.name, len(order)))}


def resolve_tasks(names: Iterable[str | Task]) -> list[Task]:
    """Tasks, each once, from names, groups (`commonsense`, `arithmetic`, `toy`, `all`) and YAMLs.

    The hub id of a task's data set (`openai/gsm8k`) is a name too.

    `all` is the fifteen real benchmarks, without the toy tasks.
    """
    found: dict[str, Task] = {}
    for name in names:
        for task in [name] if isinstance(name, Task) else _expand(name):
            if found.setdefault(task.name, task) != task:
                raise RosaError(f"two different tasks have the name {task.name!r}; rename one")
    if not found:
        raise RosaError(f"no tasks given; choose from {', '.join(built_in_tasks())}")
    return list(found.values())


def _expand(name: str) -> list[Task]:
    if name.endswith((".yaml", ".yml")):
        return [read_task(Path(name))]
    tasks = built_in_tasks().values()
    found = [
        task
        for task in tasks
        if name in (task.name, task.suite, task.hub and task.hub.path)
        or (name == "all" and task.suite != "toy")
    ]
    if not found:
        known = [*built_in_tasks(), *dict.fromkeys(t.suite for t in tasks), "all"]
        hint = did_you_mean(name, known)
        raise RosaError(f"there is no task {name!r}{hint}; choose from {', '.join(known)}")
    return found


def read_task(path: Path) -> Task:
    """The task that a YAML file declares; errors name the file and the bad key."""
    if not path.is_file():
        raise RosaError(f"there is no task file {path}; check the path")
    with errors_as(f"{path}: cannot be read as YAML"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return _checked(_build(Task, values, path, folder=path.resolve().parent), path)


def _build(kind: type, values: Any, path: Path, **extra: Any) -> Any:
    """The dataclass `kind` from a YAML mapping; raises for unknown and missing keys."""
    if not isinstance(values, dict):
        raise RosaError(f"{path}: expected keys and values, found {type(values).__name__}")
    known = {f.name: f for f in dataclasses.fields(kind) if f.name != "folder"}
    for key in values:
        if key not in known:
            raise RosaError(f"{path}: unknown key {key!r}; the keys are {', '.join(known)}")
    for key, spec in known.items():
        if key not in values and spec.default is dataclasses.MISSING:
            raise RosaError(f"{path}: the key {key!r} is missing")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if values.get("hub") is not None and kind is Task:
        values["hub"] = _build(HubSource, values["hub"], path)
    return kind(**values, **extra)


def _checked(task: Task, path: Path) -> Task:
    if not isinstance(task.name, str) or not re.fullmatch(r"[\w.-]+", task.name):
        raise RosaError(f"{path}: the name {task.name!r} must be letters, digits, '.', '-' and '_'")
    if task.filter not in FILTERS:
        raise RosaError(f"{path}: unknown filter {task.filter!r}; choose from {', '.join(FILTERS)}")
    if task.prompt not in PROMPTS:
        raise RosaError(f"{path}: unknown prompt {task.prompt!r}; choose from {', '.join(PROMPTS)}")
    if any(not isinstance(answer, str) or not answer for answer in task.answers):
        raise RosaError(f"{path}: answers must be text; quote words that YAML reads as true or 1")
    if FILTERS[task.filter].numeric == bool(task.answers):
        raise RosaError(f"{path}: the filter first_label needs answers, and no other takes them")
    for key in ("size", "max_new_tokens"):
        value, least = getattr(task, key), 0 if key == "size" else 1
        if not isinstance(value, int) or value < least:
            raise RosaError(f"{path}: {key} must be a whole number of at least {least}")
    return task
