"""What every run of a grid will train, hold in memory and take: `rosa reproduce --dry_run`."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.budget.activation_memory import DecoderShape
from rosa.budget.memory import AdaptedModel, evaluation_memory, recipe_memory
from rosa.budget.parameters import (
    ParameterCount,
    base_parameters,
    builtin_models,
    count_parameters,
    load_model_config,
)
from rosa.budget.time import Device, Workload, evaluation_seconds, training_seconds
from rosa.data.prompts import instruction_prompt
from rosa.data.sources import load_training_rows, toy_tasks
from rosa.evaluate.tasks import resolve_tasks

if TYPE_CHECKING:
    from rosa.compare.grid import Grid, TrainingSet
    from rosa.compare.plan import Job

CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class Forecast:
    """One run: its budget, and bytes and seconds by the formulas of `rosa.budget`.

    The last three are None where the method cannot be applied to the model.
    """

    job: Job
    budget: ParameterCount
    memory: float | None = None
    training: float | None = None
    evaluation: float | None = None

    @property
    def seconds(self) -> float:
        """Training and evaluation."""
        return (self.training or 0.0) + (self.evaluation or 0.0)


def forecast(
    grid: Grid, jobs: Iterable[Job], device: Device, facts: dict[str, dict[str, int]]
) -> list[Forecast]:
    """One forecast per run.

    Args:
        grid: the study.
        jobs: its runs.
        device: what they run on.
        facts: `rows`, `prompt` and `response` of training sets whose data is not there.

    Raises:
        RosaError: a model whose shape is not known here.
    """
    works = {
        name: workload(train_set, facts.get(name), grid.evaluate.limit)
        for name, train_set in grid.training_sets.items()
    }
    return [_forecast(job, works[job.group.train_set], device) for job in jobs]


def _forecast(job: Job, work: Workload, device: Device) -> Forecast:
    recipe, options = job.recipe, job.evaluate
    budget = budget_of(recipe.model, recipe.method, json.dumps(recipe.adapter))
    if budget.trainable is None or budget.total is None or options is None:
        return Forecast(job, budget)
    element = 4 if recipe.precision == "float32" else 2
    shape = shape_of(recipe.model)
    base = budget.total - budget.trainable
    model = AdaptedModel(shape, base, budget.trainable, element, recipe.quantization)
    longest = min(recipe.max_length, work.longest or recipe.max_length)
    train = recipe_memory(model, recipe, longest).total
    ask = evaluation_memory(model, work.length, options.batch_size, options.num_beams).total
    return Forecast(
        job,
        budget,
        max(train, ask),
        training_seconds(model, recipe, work, device),
        evaluation_seconds(model, work, device, options.batch_size, options.num_beams),
    )


@functools.cache
def budget_of(model: str, method: str, adapter: str) -> ParameterCount:
    """The parameters of a method with these keys (JSON) in a model; counted once per process."""
    return count_parameters(load_model_config(known_shape(model)), method, json.loads(adapter))


@functools.cache
def shape_of(model: str) -> DecoderShape:
    """The shape of a model, as `known_shape` finds it."""
    return DecoderShape.of(load_model_config(known_shape(model)))


@functools.cache
def base_size(model: str) -> int:
    """How many parameters a model has without any adapter."""
    return base_parameters(load_model_config(known_shape(model)))


def known_shape(model: str) -> str:
    """The built-in shape that a hub id means: `google/gemma-2-9b` is `Gemma2-9B`; else the id.

    A folder is itself.
    """
    if Path(model).is_dir():
        return model
    names = {_letters(name): name for name in builtin_models()}
    return names.get(_letters(model.split("/")[-1].removesuffix("-hf")), model)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def workload(train_set: TrainingSet, facts: dict[str, int] | None, limit: int | None) -> Workload:
    """How much there is to train on and to ask: read from the data, or from `facts` without it."""
    questions = sum(min(task.size, limit or task.size) for task in resolve_tasks(train_set.tasks))
    sources = [train_set.data] if isinstance(train_set.data, str) else train_set.data
    if facts is not None and not all(s in toy_tasks() or Path(s).is_file() for s in sources):
        return Workload(**facts, longest=None, questions=questions)
    rows = [lengths(record) for source in sources for record in load_training_rows(source)]
    prompt, response = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Workload(len(rows), prompt, response, round(max(map(sum, rows))), questions)


def lengths(record: dict[str, Any]) -> tuple[float, float]:
    """Tokens of a row's prompt and response, by its characters; other forms are all prompt."""
    if "instruction" in record:
        prompt = instruction_prompt(str(record["instruction"]), str(record.get("input") or ""))
        response = str(record.get("output", ""))
    else:
        prompt, response = " ".join(map(str, record.values())), ""
    return len(prompt) / CHARACTERS_PER_TOKEN, len(response) / CHARACTERS_PER_TOKEN
