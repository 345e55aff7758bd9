"""Every question, response and verdict of a study, without saying anything twice.

A task's questions are kept once, what all of them begin and end with apart; a run keeps a verdict
per question, and its responses as numbers into the task's list of different texts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rosa.compare.results import RunResult, StudyResults
from rosa.data.json_rows import read_rows
from rosa.errors import RosaError
from rosa.report.html.head import seeds_in_order

LIMIT_MB = 64.0  # of different response texts; browsers page through this much without effort

Row = tuple[int, str, str]  # index, prompt, label


@dataclass
class Texts:
    """Different texts, numbered in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, text: str | None) -> int:
        """A text's number; -1 for none."""
        return -1 if text is None else self.numbers.setdefault(text, len(self.numbers))


@dataclass
class TaskAnswers:
    """One task: its questions, and per run (by position in the study) the answers to them."""

    name: str
    title: str
    rows: dict[Row, int] = field(default_factory=dict)
    runs: dict[int, list[Answer]] = field(default_factory=dict)

    def questions(self) -> list[Row]:
        """In the order of the test set."""
        return sorted(self.rows, key=lambda row: row[0])

    def places(self) -> list[int]:
        """By a row's number, its place among the questions."""
        places = [0] * len(self.rows)
        for place, row in enumerate(self.questions()):
            places[self.rows[row]] = place
        return places


class Answer(NamedTuple):
    """One line of a run's answers."""

    row: int  # number of its question in the task's rows
    response: str
    prediction: str | None
    correct: bool


@dataclass(frozen=True)
class Examples:
    """What the page holds of them.

    Attributes:
        data: plain data for the page's script; see `pack`.
        kept: `all`, `first` seed of each method, or `none`: whose responses are there.
        count: questions, over all tasks.
        megabytes: of all different responses, kept or not.
    """

    data: dict[str, Any]
    kept: str
    count: int
    megabytes: float


def gather(study: StudyResults, limit_mb: float = LIMIT_MB) -> Examples:
    """Reads all answers; keeps all responses, those of one seed, or none, by the limit.

    Raises:
        RosaError: a file of answers is damaged.
    """
    tasks = _read(study)
    first = [i for i, run in enumerate(study.runs) if run.seed == _first_seed(study, run)]
    megabytes = _megabytes(tasks, range(len(study.runs)))
    kept, runs = "all", list(range(len(study.runs)))
    if megabytes > limit_mb:
        kept, runs = "first", first
        if _megabytes(tasks, runs) > limit_mb:
            kept, runs = "none", []
    data = pack(study, tasks, set(runs))
    return Examples(data, kept, sum(len(task.rows) for task in tasks), megabytes)


def pack(
    study: StudyResults, tasks: Sequence[TaskAnswers], keep: Collection[int]
) -> dict[str, Any]:
    """The page's data.

    methods, groups, seeds: what runs refer to by position.
    tasks: name, title, prefix and suffix of all prompts; index, prompt (what is between them) and
        label per question; texts.
    runs: group, method, seed; per task `right` ("1", "0" per answer), `prediction` and `response`
        (numbers of texts, -1 for none; no `response` where it was not kept), `rows` where the
        questions are not all of the task's in their order.
    """
    groups = list(dict.fromkeys((run.model, run.train_set) for run in study.runs))
    methods = {run.method: {"title": run.title, "group": run.group} for run in study.runs}
    names, seeds = list(methods), seeds_in_order(study)
    texts = [Texts() for _ in tasks]
    places = [task.places() for task in tasks]
    runs = []
    for number, run in enumerate(study.runs):
        answers = {
            i: _packed(task.runs[number], places[i], texts[i], number in keep)
            for i, task in enumerate(tasks)
            if number in task.runs
        }
        if answers:
            place = groups.index((run.model, run.train_set))
            who = {"method": names.index(run.method), "seed": seeds.index(run.seed)}
            runs.append({"group": place, **who, "answers": answers})
    return {
        "groups": [{"model": model, "train_set": name} for model, name in groups],
        "methods": [{"name": name, **about} for name, about in methods.items()],
        "seeds": seeds,
        "tasks": [_questions(task, texts[i]) for i, task in enumerate(tasks)],
        "runs": runs,
    }


def _read(study: StudyResults) -> list[TaskAnswers]:
    tasks: dict[str, TaskAnswers] = {}
    for number, run in enumerate(study.runs):
        for score in run.scores:
            file = study.folder / run.folder / "evaluation" / f"{score.name}.jsonl"
            if not file.is_file():
                continue  # a study may keep its results without the answers
            task = tasks.setdefault(score.name, TaskAnswers(score.name, score.title))
            task.runs[number] = list(_answers(file, task))
    return list(tasks.values())


def _answers(file: Path, task: TaskAnswers) -> Iterable[Answer]:
    for number, record in enumerate(read_rows(file), 1):
        try:
            row = (int(record["index"]), str(record["prompt"]), str(record["label"]))
            prediction = record["prediction"]
            yield Answer(
                task.rows.setdefault(row, len(task.rows)),
                str(record["response"]),
                None if prediction is None else str(prediction),
                bool(record["correct"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RosaError(
                f"{file}, row {number} is no answer ({error!r}); delete that line and evaluate the "
                "run again, which asks it anew"
            ) from None


def _packed(
    answers: Sequence[Answer], places: Sequence[int], texts: Texts, keep: bool
) -> dict[str, Any]:
    answers = sorted(answers, key=lambda answer: places[answer.row])
    packed: dict[str, Any] = {
        "right": "".join("1" if answer.correct else "0" for answer in answers),
        "prediction": [texts.number(answer.prediction) for answer in answers],
    }
    if keep:
        packed["response"] = [texts.number(answer.response) for answer in answers]
    rows = [places[answer.row] for answer in answers]
    if rows != list(range(len(places))):
        packed["rows"] = rows
    return packed


def _questions(task: TaskAnswers, texts: Texts) -> dict[str, Any]:
    questions = task.questions()
    prompts = [prompt for _, prompt, _ in questions]
    prefix, suffix = common_ends(prompts)
    return {
        "name": task.name,
        "title": task.title,
        "prefix": prefix,
        "suffix": suffix,
        "index": [index for index, _, _ in questions],
        "prompt": [prompt[len(prefix) : len(prompt) - len(suffix)] for prompt in prompts],
        "label": [label for _, _, label in questions],
        "texts": list(texts.numbers),
    }


def common_ends(prompts: Sequence[str]) -> tuple[str, str]:
    """What all prompts begin with and end with, in whole lines; nothing of a single prompt."""
    if len(prompts) < 2:
        return "", ""
    prefix = _common_start(prompts)
    prefix = prefix[: prefix.rfind("\n") + 1]
    rest = [prompt[len(prefix) :] for prompt in prompts]
    suffix = _common_start([text[::-1] for text in rest])[::-1]
    return prefix, suffix[suffix.find("\n") :] if "\n" in suffix else ""


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)  # what these two share, all between them share
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return first[: next(differing, min(len(first), len(last)))]


def _megabytes(tasks: Iterable[TaskAnswers], runs: Collection[int]) -> float:
    wanted = set(runs)
    texts = {
        (task.name, answer.response)
        for task in tasks
        for number, answers in task.runs.items()
        if number in wanted
        for answer in answers
    }
    return sum(len(text) for _, text in texts) / 1e6


def _first_seed(study: StudyResults, run: RunResult) -> int:
    """The seed of the first run of this run's model, training set and method."""
    own = study.select(model=run.model, train_set=run.train_set, method=run.method)
    return own[0].seed
