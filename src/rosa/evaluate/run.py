"""Scores a model on tasks: generates responses, reads the answers and writes the results.

    results = run_evaluation("runs/my-adapter", ["boolq"], EvaluationOptions(data="dataset"))
    results["boolq"].accuracy

Answers are written as they are generated. An interrupted run resumes to the same answers as an
uninterrupted one: batches are formed from the whole task, never from the examples that remain.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rosa.data.prompts import NEXT_EXAMPLE, end_of_turn
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError
from rosa.evaluate.answer_filters import PUBLISHED
from rosa.evaluate.examples import Example, fingerprint
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.forgetting import load_text, measure_forgetting
from rosa.evaluate.generation import (
    eval_mode,
    generate,
    longest_first_batches,
    max_positions,
)
from rosa.evaluate.options import DEFAULT_OPTIONS, EvaluationOptions
from rosa.evaluate.progress import AnswerProgress
from rosa.evaluate.requests import (
    TaskRequests,
    build_requests,
    prompt_settings,
    request_notes,
    unparsable_note,
)
from rosa.evaluate.results import Results, TaskScore
from rosa.evaluate.tasks import Task
from rosa.models import identity
from rosa.models.loading import (
    adapter_base,
    check_model_files,
    find_adapter_config,
    load,
    quiet,
)


def run_evaluation(
    model: str | Path,
    tasks: Sequence[str | Task],
    options: EvaluationOptions = DEFAULT_OPTIONS,
    *,
    out: str | Path | None = None,
    load_options: Mapping[str, Any] | None = None,
    log: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> Results | None:
    """`rosa evaluate` in Python: load a model, measure forgetting, score it on tasks.

    Options, files, folder, tasks and data are checked, in this order, before the model is loaded.

    Args:
        model: hub id or folder of a model or adapter, or `rosa-tiny`.
        tasks: as for `evaluate`; without any, only forgetting is measured and None returned.
        load_options: keyword arguments of `rosa.models.loading.load` (dtype, device, ...).
        log: called with each line of output.
        options, out, progress: as for `evaluate`.
    """
    options.check()
    if not (tasks or options.forgetting):
        raise RosaError("there is nothing to evaluate; give tasks, or a text for forgetting")
    check_model_files(str(model))
    if out is not None:
        EvaluationFolder(Path(out)).check(options.settings if tasks else {})
    requests = build_requests(tasks, options) if tasks else []
    text = None
    if options.forgetting is not None:
        config_file = find_adapter_config(str(model))
        if config_file is None:
            raise RosaError(
                f"forgetting is measured on an adapter, and '{model}' is a base model; give the "
                "adapter's folder"
            )
        text = load_text(adapter_base(str(model), config_file), options.forgetting)
    loaded = load(str(model), **(load_options or {}))
    run = identity.identity(loaded)
    if text is not None:
        with quiet():
            found = measure_forgetting(loaded.model, loaded.tokenizer, text)
        if out is not None:
            EvaluationFolder(Path(out)).write_forgetting(found, run)
        log(str(found))
    if not requests:
        return None
    if out is not None:
        log(f"answers are written to {out}")
    return evaluate(
        loaded.model,
        loaded.tokenizer,
        requests,
        options,
        out=out,
        run=run,
        trained_on=identity.trained_on(str(model)),
        progress=progress,
    )


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Task] | Sequence[TaskRequests],
    options: EvaluationOptions = DEFAULT_OPTIONS,
    *,
    out: str | Path | None = None,
    run: Mapping[str, Any] | None = None,
    trained_on: Sequence[str] = (),
    progress: bool = False,
) -> Results:
    """Score a model in memory on `tasks`.

    Args:
        model: a causal language model, with or without an adapter; its training mode is restored.
        tasks: names, groups, YAML files or `Task`s; or the result of `build_requests`.
        out: folder for answers and results, resumed if it holds this run; None writes no files.
        run: the model's identity (its name, adapter, ...), compared with the folder's.
        trained_on: names of the training sets, if known.
        progress: show a bar on a terminal, else print a line every 30 seconds, to stderr.

    Raises:
        RosaError: bad options, tasks or data, or a folder that holds another run.
    """
    options.check()
    requests: list[Any] = list(tasks)
    if not (requests and all(isinstance(r, TaskRequests) for r in requests)):
        requests = build_requests(requests, options)
    requests = [r.rendered(tokenizer) for r in requests]
    settings = {
        "protocol": options.protocol,
        **(run or {}),
        "dtype": str(model.dtype).removeprefix("torch."),
        **options.settings,
        **prompt_settings(requests),
    }
    folder = EvaluationFolder(Path(out)) if out is not None else None
    if folder:
        folder.claim(settings, {r.task.name: fingerprint(r.task, r.examples) for r in requests})
    with (
        folder.in_use() if folder else contextlib.nullcontext(),
        quiet(),
        eval_mode(model),
        AnswerProgress(
            sum(len(r.examples) for r in requests), model.device, shown=progress
        ) as shown,
    ):
        scorer = _Scorer(model, tokenizer, options, folder, shown)
        scores = [scorer.score(r) for r in requests]
        settings |= {"batch_size": options.batch_size, **scorer.speed()}
        if trained_on:
            settings["trained_on"] = list(trained_on)
        notes = [*request_notes(options, requests), *scorer.notes, *scorer.hints]
        results = Results(scores, settings, notes)
        if folder:
            folder.write_results(results)
    return results


@dataclass
class _Scorer:
    """Generates and scores the responses of one model; counts tokens and seconds."""

    model: Any
    tokenizer: Any
    options: EvaluationOptions
    folder: EvaluationFolder | None
    shown: AnswerProgress
    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def score(self, requests: TaskRequests) -> TaskScore:
        task, examples, folder = requests.task, requests.examples, self.folder
        answers = folder.read_answers(task.name) if folder else {}
        self.shown.advance(task.title, len(answers), self._rate, asked=False)
        # A chat template contains the special tokens.
        prompts = encode_prompts(
            self.tokenizer, [e.prompt for e in examples], add_special_tokens=task.prompt != "chat"
        )
        self._note_overlong(task, prompts)
        lengths = [len(prompt) for prompt in prompts]
        for batch in longest_first_batches(lengths, self.options.batch_size):
            missing = [i for i in batch if examples[i].index not in answers]
            if not missing:
                continue
            # The complete batch again: padding, and so rounding, is as in an uninterrupted run.
            responses = self._generate([prompts[i] for i in batch], requests)
            new = [
                answer_record(task, examples[i], text, self.options.protocol)
                for i, text in zip(batch, responses, strict=True)
                if i in missing
            ]
            if folder:
                folder.append_answers(task.name, new)
            answers |= {record["index"]: record for record in new}
            self.shown.advance(task.title, len(missing), self._rate)
        if note := unparsable_note(task, list(answers.values())):
            self.hints.append(note)
        score = task.score(list(answers.values()), requests.rows)
        self.shown.print(f"{task.title}: {score.correct} of {score.scored} answers are correct")
        return score

    def _generate(self, prompts: list[list[int]], requests: TaskRequests) -> list[str]:
        task, options = requests.task, self.options
        start = time.perf_counter()
        responses = generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=task.max_new_tokens,
            num_beams=options.num_beams,
            until=NEXT_EXAMPLE.get(task.prompt) if requests.shots else None,
            stop_token=end_of_turn(self.tokenizer) if task.prompt == "chat" else None,
            stop_when=task.early_stop(options.protocol) if options.may_cut_responses else None,
        )
        self.seconds += time.perf_counter() - start
        self.responses += len(responses)
        self.tokens += sum(response.tokens for response in responses)
        return [response.text for response in responses]

    def _note_overlong(self, task: Task, prompts: list[list[int]]) -> None:
        longest = max_positions(self.model)
        over = sum(len(prompt) + task.max_new_tokens > longest for prompt in prompts)
        if over:
            self.notes.append(
                f"{task.title}: {over} prompts with their response may be longer than the model's "
                f"{longest} positions."
            )

    def speed(self) -> dict[str, float]:
        """Speed and length of what was generated; empty if nothing was."""
        if not self.tokens:
            return {}
        mean = self.tokens / self.responses
        return {"tokens_per_second": round(self._rate, 1), "tokens_per_response": round(mean, 2)}

    @property
    def _rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def answer_record(
    task: Task, example: Example, response: str, protocol: str = PUBLISHED
) -> dict[str, Any]:
    """The line of `<task>.jsonl` for an example and the model's response to it."""
    record = {"index": example.index, "prompt": example.prompt, "response": response}
    return task.judged({**record, "prediction": None, "label": example.label}, protocol)
