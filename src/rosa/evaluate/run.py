"""Scoring a model on benchmarks: it is asked, its answers are read by a protocol's rules.

    results = evaluate(model, tokenizer, ["boolq", "gsm8k"], data="dataset", out="runs/eval")
    results["boolq"].accuracy

Answers are written as they come. A run that was stopped goes on where it was: batches are cut
from the whole task, never from what is left, so the answers are those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rosa.common.files import lock_folder, translate_disk_errors
from rosa.data.prompts import NEXT_EXAMPLE
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError
from rosa.evaluate.answers import PROTOCOLS, PUBLISHED
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.generation import (
    Response,
    generate,
    longest_first_batches,
    padding_share,
)
from rosa.evaluate.requests import Workload, conditions, departures, prepare
from rosa.evaluate.results import Results, TaskScore
from rosa.evaluate.tasks import Example, Task, fingerprint
from rosa.models.loading import quiet

FULL = "make room there, and the same command goes on"


def evaluate(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str | Task] | Sequence[Workload],
    *,
    out: str | Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 0,
    num_beams: int = 1,
    protocol: str = PUBLISHED,
    full_responses: bool = False,
    run: dict[str, Any] | None = None,
    trained_on: Sequence[str] = (),
    progress: bool = False,
    **asking: Any,
) -> Results:
    """Ask `model` every question of `tasks` and score its answers.

    Args:
        model: a Transformers causal model, adapted or not; its training mode is restored.
        tasks: names, groups, YAML files or `Task`s; or what `prepare` gave.
        out: folder for answers and results, resumed where it holds this run; None keeps nothing.
        batch_size: prompts at a time.
        limit: ask a seeded sample of this many examples per task; of prepared tasks, the record.
        seed: of the sample and of the worked examples, likewise.
        num_beams: 1 is greedy; the published suite used 4.
        protocol: whose rules read the answers, a key of `PROTOCOLS`.
        full_responses: let a response go on to its end where its answer is decided; scores are
            the same, and another protocol can read the responses (`rosa.evaluate.rescore`).
        run: what identifies the model (its name, adapter, ...); a folder with another is refused.
        trained_on: names of the training sets, where they are known.
        progress: show a progress bar with tokens per second.
        asking: `prepare`'s other options: data, max_new_tokens, prompt, num_fewshot, fewshot_data.

    Raises:
        RosaError: bad tasks or data, or a folder that holds another run.
    """
    check_options(batch_size, num_beams, protocol)
    if tasks and all(isinstance(task, Workload) for task in tasks):
        if asking:
            raise TypeError(f"give {', '.join(asking)} to `prepare`, which made these tasks")
        work: list[Any] = list(tasks)
    else:
        work = prepare(tasks, limit=limit, seed=seed, **asking)  # type: ignore[arg-type]
    work = [w.rendered(tokenizer) for w in work]
    identity = {"protocol": protocol, **(run or {})}
    identity |= {"dtype": str(model.dtype).removeprefix("torch."), "num_beams": num_beams}
    whole = full_responses or not may_cut(protocol, num_beams)
    identity |= {"limit": limit, "seed": seed, "full_responses": whole, **departures(work)}
    folder = EvaluationFolder(Path(out)) if out is not None else None
    if folder:
        folder.claim(identity, {w.task.name: fingerprint(w.task, w.examples) for w in work})
    bench = _Bench(model, tokenizer, batch_size, num_beams, protocol, whole, folder)
    with _held(folder), quiet(), _evaluating(model), _progress_bar(work, progress) as report:
        scores = [bench.score(w, report) for w in work]
    settings = {**identity, "batch_size": batch_size, **bench.speed()}
    settings["padding_percent"] = bench.padding
    if trained_on:
        settings["trained_on"] = list(trained_on)
    results = Results(scores, settings, [*conditions(protocol, seed, work), *bench.notes])
    if folder:
        with translate_disk_errors(folder.path, lambda: FULL):
            folder.write_results(results)
    return results


@contextlib.contextmanager
def _held(folder: EvaluationFolder | None) -> Iterator[None]:
    """The folder, where there is one, for this process alone."""
    if folder is None:
        yield
        return
    with lock_folder(folder.path), translate_disk_errors(folder.path, lambda: FULL):
        yield


def check_options(batch_size: int, num_beams: int, protocol: str) -> None:
    """Raises RosaError for a value out of range or an unknown protocol."""
    for name, value in (("batch_size", batch_size), ("num_beams", num_beams)):
        if value < 1:
            raise RosaError(f"{name} must be at least 1, found {value}")
    if protocol not in PROTOCOLS:
        raise RosaError(f"unknown protocol {protocol!r}; say one of {', '.join(PROTOCOLS)}")


def may_cut(protocol: str, num_beams: int) -> bool:
    """Whether a response may end before its end of text because its answer is decided."""
    return num_beams == 1 and any(rule.decided for rule in PROTOCOLS[protocol].values())


@dataclass
class _Bench:
    """A model and the way it is asked; counts tokens and seconds as it goes."""

    model: Any
    tokenizer: Any
    batch_size: int
    num_beams: int
    protocol: str
    full_responses: bool
    folder: EvaluationFolder | None
    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    padding: dict[str, float] = field(default_factory=dict)  # percent of each task's prompt tokens

    def score(self, work: Workload, report: Callable[[str, int, float], None]) -> TaskScore:
        task = work.task
        done = self.folder.read_lines(task.name) if self.folder else {}
        report(task.title, len(done), self.rate)
        texts = [e.prompt for e in work.examples]
        # A chat template writes the special tokens itself.
        templated = task.prompt == "chat"
        prompts = encode_prompts(self.tokenizer, texts, add_special_tokens=not templated)
        self._note_overlong(task, prompts)
        lengths = [len(prompt) for prompt in prompts]
        batches = longest_first_batches(lengths, self.batch_size)
        self.padding[task.name] = round(100 * padding_share(lengths, batches), 1)
        with self.folder.open(task.name) if self.folder else contextlib.nullcontext() as file:
            for batch in batches:
                missing = [i for i in batch if work.examples[i].index not in done]
                if not missing:
                    continue
                # The whole batch again: padding, and so rounding, is as in an uninterrupted run.
                responses = self._ask([prompts[i] for i in batch], work)
                for i in missing:
                    text = responses[batch.index(i)].text
                    record = judge(task, work.examples[i], text, self.protocol)
                    done[record["index"]] = record
                    _write_line(file, record)
                report(task.title, len(missing), self.rate)
        return tally(work, list(done.values()))

    def _ask(self, prompts: list[list[int]], work: Workload) -> list[Response]:
        start = time.perf_counter()
        responses = generate(
            self.model,
            self.tokenizer,
            prompts,
            max_new_tokens=work.task.max_new_tokens,
            num_beams=self.num_beams,
            until=NEXT_EXAMPLE.get(work.task.prompt) if work.shots else None,
            stop_when=None if self.full_responses else work.task.early_stop(self.protocol),
        )
        self.seconds += time.perf_counter() - start
        self.responses += len(responses)
        self.tokens += sum(response.tokens for response in responses)
        return responses

    def _note_overlong(self, task: Task, prompts: list[list[int]]) -> None:
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if longest is None:
            return
        over = sum(len(prompt) + task.max_new_tokens > longest for prompt in prompts)
        if over:
            self.notes.append(
                f"{task.title}: {over} prompts with their response may be longer than the "
                f"{longest} positions that this model was made for."
            )

    @property
    def rate(self) -> float:
        """New tokens per second so far, generation alone."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def speed(self) -> dict[str, float]:
        """What goes into the results; nothing where every answer was there already."""
        if not self.tokens:
            return {}
        mean = self.tokens / self.responses
        return {"tokens_per_second": round(self.rate, 1), "tokens_per_response": round(mean, 2)}


def judge(task: Task, example: Example, response: str, protocol: str = PUBLISHED) -> dict[str, Any]:
    """The line that an answered example leaves in the task's file."""
    prediction = task.parse(response, protocol)
    return {
        "index": example.index,
        "prompt": example.prompt,
        "response": response,
        "prediction": prediction,
        "label": example.label,
        "correct": task.is_correct(prediction, example.label),
    }


def tally(work: Workload, records: Sequence[dict[str, Any]]) -> TaskScore:
    """Count the records of one task."""
    return TaskScore(
        name=work.task.name,
        title=work.task.title,
        suite=work.task.suite,
        correct=sum(record["correct"] for record in records),
        scored=len(records),
        unparsable=sum(record["prediction"] is None for record in records),
        rows=work.rows,
        size=work.task.size,
        seen_in_training=work.task.seen_in_training,
    )


def _write_line(file: TextIO | None, record: dict[str, Any]) -> None:
    if file is not None:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _progress_bar(work: list[Workload], show: bool) -> Iterator[Callable[[str, int, float], None]]:
    """Gives `report(title, answered, tokens_per_second)`, which moves the bar by `answered`."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not show) as bar:
        total = bar.add_task("", total=sum(len(w.examples) for w in work), rate=0.0)

        def report(title: str, answered: int, rate: float) -> None:
            bar.update(total, description=title, advance=answered, rate=rate)

        yield report
