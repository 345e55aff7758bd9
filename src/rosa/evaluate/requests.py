"""What an evaluation asks: each task's questions, and what stands before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.data.prompts import PROMPTS, Shot, check_chat_template, render
from rosa.data.sampling import sample
from rosa.errors import RosaError
from rosa.evaluate.fewshot import draw_shots, training_file
from rosa.evaluate.tasks import Example, Task, load_examples, resolve_tasks


@dataclass(frozen=True)
class Workload:
    """One task with the examples that are asked, out of `rows` in its test set.

    `shots`, drawn from the file `shots_from`, are shown before each question.
    """

    task: Task
    examples: list[Example]
    rows: int
    shots: tuple[Shot, ...] = ()
    shots_from: str | None = None

    def rendered(self, tokenizer: Any) -> Workload:
        """With the whole prompt in every example: the shots, and the model's chat template."""
        style = self.task.prompt
        if style == "chat":
            check_chat_template(tokenizer)
        elif not self.shots:
            return self
        prompts = [render(style, e.question, self.shots, tokenizer) for e in self.examples]
        pairs = zip(self.examples, prompts, strict=True)
        return dataclasses.replace(
            self, examples=[dataclasses.replace(e, prompt=prompt) for e, prompt in pairs]
        )


def prepare(
    tasks: Sequence[str | Task],
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    max_new_tokens: int | None = None,
    prompt: str | None = None,
    num_fewshot: int = 0,
    fewshot_data: str | Path | None = None,
) -> list[Workload]:
    """Load and check every task's examples, before any model is loaded.

    Args:
        tasks: names, groups, YAML files or `Task`s.
        data: folder with the test sets in LLM-Adapters' layout; the hub where it is None.
        limit: take a seeded sample of this many examples per task.
        seed: of that sample, and of the worked examples.
        max_new_tokens: instead of the task's own.
        prompt: one of `PROMPTS`, instead of the task's own.
        num_fewshot: worked examples before each question.
        fewshot_data: the file that they come from; by default `train.json` beside the test set.

    Raises:
        RosaError: an unknown task or prompt, bad data, an unknown label, or too few examples.
    """
    check_asking(limit, max_new_tokens, prompt, num_fewshot)
    changes = {"max_new_tokens": max_new_tokens, "prompt": prompt}
    given: dict[str, Any] = {key: value for key, value in changes.items() if value is not None}
    work = []
    for task in resolve_tasks(tasks):
        task = dataclasses.replace(task, **given)
        examples = load_examples(task, data)
        asked = Workload(task, sample(examples, limit, seed), len(examples))
        if num_fewshot:
            source = training_file(task, fewshot_data, data)
            shots = draw_shots(task, examples, num_fewshot, source, seed)
            asked = dataclasses.replace(asked, shots=shots, shots_from=str(source))
        work.append(asked)
    return work


def check_asking(
    limit: int | None, max_new_tokens: int | None, prompt: str | None, num_fewshot: int
) -> None:
    """Raises RosaError for a value of `prepare` that no task would take."""
    for name, value in (("limit", limit), ("max_new_tokens", max_new_tokens)):
        if value is not None and value < 1:
            raise RosaError(f"{name} must be at least 1, found {value}")
    if num_fewshot < 0:
        raise RosaError(f"num_fewshot must be at least 0, found {num_fewshot}")
    if prompt not in (None, *PROMPTS):
        raise RosaError(f"unknown prompt {prompt!r}; say one of {', '.join(PROMPTS)}")


def departures(work: Sequence[Workload]) -> dict[str, Any]:
    """How the prompts differ from the published ones; empty where they do not."""
    shots = max((len(w.shots) for w in work), default=0)
    chat = any(w.task.prompt == "chat" for w in work)
    return {**({"num_fewshot": shots} if shots else {}), **({"prompt": "chat"} if chat else {})}


def protocol_note(protocol: str) -> str:
    """The footnote about the rules."""
    return f"Answers are read by the rules of the protocol {protocol}."


def conditions(protocol: str, seed: int, work: Sequence[Workload]) -> list[str]:
    """Footnotes: by whose rules the answers were read, and what stood before the question."""
    notes = [protocol_note(protocol)]
    chat = [w.task.title for w in work if w.task.prompt == "chat"]
    if chat:
        whose = "" if len(chat) == len(work) else f" of {', '.join(chat)}"
        notes.append(f"The questions{whose} stand in the model's chat template.")
    sources = list(dict.fromkeys(w.shots_from for w in work if w.shots_from))
    if sources:
        shots = max(len(w.shots) for w in work)
        stand = "1 worked example stands" if shots == 1 else f"{shots} worked examples stand"
        notes.append(
            f"{stand} before each question, drawn with seed {seed} from {', '.join(sources)}."
        )
    return notes
