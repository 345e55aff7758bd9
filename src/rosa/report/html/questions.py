"""Every question, response and verdict of a study, each text stored once.

A task's questions are stored once, without what all of them begin and end with; a run has a verdict
per question, and its responses as positions in the task's list of different texts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

from rosa.compare.results import StudyResults
from rosa.data.row_files import read_rows
from rosa.errors import RosaError
from rosa.report.html.head import seeds_in_order

LIMIT_MB = 64.0  # of different response texts; browsers page through this much without effort


class PageQuestion(NamedTuple):
    """What a row of a test set asks."""

    row: int  # of the test set: its `index`
    prompt: str
    label: str


class Answer(NamedTuple):
    """One line of a run's answers."""

    question: PageQuestion
    response: str
    prediction: str | None
    correct: bool


@dataclass
class TaskAnswers:
    """One task: its questions, and per run (by position in the study) the answers to them."""

    title: str
    questions: dict[PageQuestion, PageQuestion] = field(default_factory=dict)  # each object once
    runs: dict[int, list[Answer]] = field(default_factory=dict)


@dataclass(frozen=True)
class PageExamples:
    """What the page holds of them.

    Attributes:
        data: plain data for the page's script; see `pack`.
        kept: whose responses are there: `all`, those of the `first` seed of each method, or `none`.
        count: questions, over all tasks.
        megabytes: of all different responses, kept or not.
    """

    data: dict[str, Any]
    kept: str
    count: int
    megabytes: float


def gather(study: StudyResults, limit_mb: float = LIMIT_MB) -> PageExamples:
    """Reads all answers; keeps all responses, those of one seed, or none, by the limit.

    Raises:
        RosaError: a file of answers is damaged.
    """
    tasks = _read(study)
    every = range(len(study.runs))
    seeds: dict[tuple[str, str, str], int] = {}
    for run in study.runs:
        seeds.setdefault((run.model, run.train_set, run.method), run.seed)
    first = [i for i, r in enumerate(study.runs) if r.seed == seeds[r.model, r.train_set, r.method]]
    options = {"all": every, "first": first, "none": ()}
    sizes = {kept: _megabytes(tasks.values(), numbers) for kept, numbers in options.items()}
    kept = next((kept for kept in options if sizes[kept] <= limit_mb), "none")
    data = pack(study, tasks, set(options[kept]))
    count = sum(len(task.questions) for task in tasks.values())
    return PageExamples(data, kept, count, sizes["all"])


def pack(
    study: StudyResults, tasks: dict[str, TaskAnswers], keep: Collection[int]
) -> dict[str, Any]:
    """The page's data.

    methods, groups, seeds: what runs refer to by position.
    tasks: name, title, prefix and suffix of all prompts; index, prompt (what is between them) and
        label per question; texts.
    runs: group, method, seed; per task `right` ("1", "0" per answer), `prediction` and `response`
        (positions of texts, -1 for none; no `response` where it was not kept), `rows` where the
        questions are not all of the task's in their order.
    """
    groups = list(dict.fromkeys((run.model, run.train_set) for run in study.runs))
    methods = {run.method: {"title": run.title, "group": run.group} for run in study.runs}
    names, seeds = list(methods), seeds_in_order(study)
    runs: list[dict[str, Any]] = [
        {
            "group": groups.index((run.model, run.train_set)),
            "method": names.index(run.method),
            "seed": seeds.index(run.seed),
            "answers": {},
        }
        for run in study.runs
    ]
    packed_tasks = []
    for i, (name, task) in enumerate(tasks.items()):
        questions = sorted(task.questions, key=lambda question: question.row)
        places = {question: place for place, question in enumerate(questions)}
        texts: dict[str, int] = {}
        for number, answers in task.runs.items():
            runs[number]["answers"][i] = _packed(answers, places, texts, number in keep)
        packed_tasks.append({"name": name, "title": task.title, **_questions(questions)})
        packed_tasks[-1]["texts"] = list(texts)
    return {
        "groups": [{"model": model, "train_set": name} for model, name in groups],
        "methods": [{"name": name, **about} for name, about in methods.items()],
        "seeds": seeds,
        "tasks": packed_tasks,
        "runs": [run for run in runs if run["answers"]],
    }


def _read(study: StudyResults) -> dict[str, TaskAnswers]:
    tasks: dict[str, TaskAnswers] = {}
    for number, run in enumerate(study.runs):
        for score in run.scores:
            file = study.answers_file(run, score.name)
            if file.is_file():  # a study may keep its results without the answers
                task = tasks.setdefault(score.name, TaskAnswers(score.title))
                task.runs[number] = list(_answers(file, task.questions))
    return tasks


def _answers(file: Path, questions: dict[PageQuestion, PageQuestion]) -> Iterable[Answer]:
    for number, row in enumerate(read_rows(file), 1):
        try:
            question = PageQuestion(int(row["index"]), str(row["prompt"]), str(row["label"]))
            question = questions.setdefault(question, question)
            prediction = None if row["prediction"] is None else str(row["prediction"])
            yield Answer(question, str(row["response"]), prediction, bool(row["correct"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RosaError(
                f"{file}, row {number} is not an answer ({error!r}); delete that line and evaluate "
                "the run again, which adds what is missing"
            ) from None


def _packed(
    answers: Sequence[Answer], places: dict[PageQuestion, int], texts: dict[str, int], keep: bool
) -> dict[str, Any]:
    def position(text: str | None) -> int:
        return -1 if text is None else texts.setdefault(text, len(texts))

    answers = sorted(answers, key=lambda answer: places[answer.question])
    packed: dict[str, Any] = {
        "right": "".join("1" if answer.correct else "0" for answer in answers),
        "prediction": [position(answer.prediction) for answer in answers],
    }
    if keep:
        packed["response"] = [position(answer.response) for answer in answers]
    rows = [places[answer.question] for answer in answers]
    if rows != list(range(len(places))):
        packed["rows"] = rows
    return packed


def _questions(questions: Sequence[PageQuestion]) -> dict[str, Any]:
    prompts = [question.prompt for question in questions]
    prefix, suffix = common_ends(prompts)
    return {
        "prefix": prefix,
        "suffix": suffix,
        "index": [question.row for question in questions],
        "prompt": [prompt[len(prefix) : len(prompt) - len(suffix)] for prompt in prompts],
        "label": [question.label for question in questions],
    }


def common_ends(prompts: Sequence[str]) -> tuple[str, str]:
    """What all prompts begin with and end with, in whole lines; nothing of a single prompt."""
    if len(prompts) < 2:
        return "", ""
    prefix = commonprefix(prompts)  # noqa: RUF071 (character by character is what is meant)
    prefix = prefix[: prefix.rfind("\n") + 1]
    reversed_rest = [prompt[len(prefix) :][::-1] for prompt in prompts]
    suffix = commonprefix(reversed_rest)[::-1]  # noqa: RUF071
    return prefix, suffix[suffix.find("\n") :] if "\n" in suffix else ""


def _megabytes(tasks: Iterable[TaskAnswers], runs: Collection[int]) -> float:
    """Of the different responses to each task in some of the runs."""
    sizes = (
        sum(map(len, {answer.response for run in runs for answer in task.runs.get(run, ())}))
        for task in tasks
    )
    return sum(sizes) / 1e6
