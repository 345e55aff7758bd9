"""The questions of an evaluation: each task's examples, and the worked examples before them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rosa.data.prompts import Shot, render
from rosa.data.splits import sample
from rosa.evaluate.examples import Example, load_examples
from rosa.evaluate.fewshot import draw_shots, training_file
from rosa.evaluate.options import DEFAULT_OPTIONS, EvaluationOptions
from rosa.evaluate.tasks import Task, resolve_tasks

SHOWN = 80  # characters of a response in a note
PROMPT_TITLES = {
    "alpaca": "Alpaca's instruction template",
    "plain": "the question without a template",
    "chat": "its chat template",
}


@dataclass(frozen=True)
class TaskRequests:
    """The examples of one task to ask, of the `rows` in its test set.

    `shots`, drawn from the file `shots_from`, precede each question.
    """

    task: Task
    examples: list[Example]
    rows: int
    shots: tuple[Shot, ...] = ()
    shots_from: str | None = None

    def rendered(self, tokenizer: Any) -> TaskRequests:
        """With complete prompts: the shots, and the tokenizer's chat template."""
        style = self.task.prompt
        if style != "chat" and not self.shots:
            return self
        examples = [
            dataclasses.replace(e, prompt=render(style, e.question, self.shots, tokenizer))
            for e in self.examples
        ]
        return dataclasses.replace(self, examples=examples)


def build_requests(
    tasks: Sequence[str | Task], options: EvaluationOptions = DEFAULT_OPTIONS
) -> list[TaskRequests]:
    """The checked examples of every task: names, groups, YAML files or `Task`s. Needs no model."""
    options.check()
    overrides = {"max_new_tokens": options.max_new_tokens, "prompt": options.prompt}
    changes: dict[str, Any] = {k: v for k, v in overrides.items() if v is not None}
    built = []
    for task in resolve_tasks(tasks):
        task = dataclasses.replace(task, **changes)
        examples = load_examples(task, options.data)
        asked = sample(examples, options.limit, options.seed)
        requests = TaskRequests(task, asked, len(examples))
        if options.num_fewshot:
            source = training_file(task, options.fewshot_data, options.data)
            shots = draw_shots(task, examples, options.num_fewshot, source, options.seed)
            requests = dataclasses.replace(requests, shots=shots, shots_from=str(source))
        built.append(requests)
    return built


def prompt_settings(requests: Sequence[TaskRequests]) -> dict[str, Any]:
    """How the prompts differ from the published ones; empty where they do not."""
    shots = max((len(r.shots) for r in requests), default=0)
    chat = any(r.task.prompt == "chat" for r in requests)
    return {**({"num_fewshot": shots} if shots else {}), **({"prompt": "chat"} if chat else {})}


def protocol_note(protocol: str) -> str:
    """The footnote on the protocol."""
    return f"Answers are read by the rules of the protocol {protocol}."


def unparsable_note(task: Task, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Where most responses hold no answer: how many, one of them, and the likely cause."""
    missed = [record["response"] for record in records if record["prediction"] is None]
    if 2 * len(missed) <= len(records):
        return None
    share = f"{len(missed)} of {len(records)} responses ({100 * len(missed) / len(records):.0f} %)"
    shown = " ".join(missed[0].split())
    shown = repr(shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}...") if shown else "no text"
    others = " or ".join(f"--prompt {name}" for name in PROMPT_TITLES if name != task.prompt)
    return (
        f"{task.title}: no answer is found in {share}, such as {shown}. The likely cause: the "
        f"model was not trained with this prompt, {PROMPT_TITLES[task.prompt]}, or too "
        f"briefly. Try {others}, or fine-tune the model on such questions."
    )


def request_notes(options: EvaluationOptions, requests: Sequence[TaskRequests]) -> list[str]:
    """Footnotes: the protocol, the chat template, and the worked examples."""
    notes = [protocol_note(options.protocol)]
    chat = [r.task.title for r in requests if r.task.prompt == "chat"]
    if chat:
        whose = "" if len(chat) == len(requests) else f" of {', '.join(chat)}"
        notes.append(f"The questions{whose} are in the model's chat template.")
    sources = list(dict.fromkeys(r.shots_from for r in requests if r.shots_from))
    if sources:
        shots = max(len(r.shots) for r in requests)
        count = "1 worked example precedes" if shots == 1 else f"{shots} worked examples precede"
        drawn = f"drawn with seed {options.seed} from {', '.join(sources)}"
        notes.append(f"{count} each question, {drawn}.")
    return notes
