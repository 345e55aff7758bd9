"""The parameters, memory and time of every run of a grid: `rosa reproduce --dry_run`."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rosa.budget.activation_memory import DecoderShape
from rosa.budget.memory import AdaptedModel, evaluation_memory, recipe_memory
from rosa.budget.parameters import ParameterCount, base_parameters, matching_builtin
from rosa.budget.time import Device, Workload, evaluation_seconds, training_seconds
from rosa.common.formatting import format_bytes, format_duration
from rosa.compare.budgets import cached_count, cached_model_config
from rosa.compare.grid import TrainingSet
from rosa.compare.job import Job
from rosa.compare.plan import ResolveRecipe, plan
from rosa.data.prompts import read_question, render
from rosa.data.sources import load_training_rows, toy_tasks
from rosa.evaluate.tasks import resolve_tasks
from rosa.models.loading import short_name
from rosa.reproduce.targets import Target

CHARACTERS_PER_TOKEN = 4
HEADER = ("model", "training set", "method", "seed", "trainable", "%", "memory", "train", "ask")


class RunEstimate(NamedTuple):
    """What one run needs; bytes and seconds are None if its method does not fit the model."""

    parameters: ParameterCount
    memory: float | None = None
    training: float | None = None
    evaluation: float | None = None


def dry_run(target: Target, resolve: ResolveRecipe, device: Device) -> list[str]:
    """The lines that `--dry_run` prints: every run with its estimate, the total and remarks."""
    grid = target.grid
    assert grid is not None
    workloads = {
        name: workload(train_set, target.workloads.get(name), grid.evaluate.limit)
        for name, train_set in grid.training_sets.items()
    }
    jobs = plan(grid, resolve)
    runs = [estimate(job, workloads[job.group.train_set], device) for job in jobs]
    rows = [HEADER, *map(_cells, jobs, runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * 3 + [str.rjust] * 6
    lines = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
        for row in rows
    ]
    hours = sum((run.training or 0) + (run.evaluation or 0) for run in runs) / 3600
    lines.append(
        f"{len(runs)} runs, about {hours:,.1f} hours on one {device.name} at "
        f"{device.utilization:.0%} of its peak, counting computation alone: expect more "
        "(guides/comparing.md)"
    )
    unknown = {run.parameters.title: run.parameters.note for run in runs if run.memory is None}
    lines += [f"{title}: {note}" for title, note in unknown.items()]
    for name, train_set in grid.training_sets.items():
        if train_set.sha256 and not Path(str(train_set.data)).is_file():
            lines.append(
                f"{name}: {train_set.data} was not found; its known number and length of rows "
                "are used"
            )
    return [f"{target.name}: {target.title}", *lines]


def _cells(job: Job, run: RunEstimate) -> tuple[str, ...]:
    return (
        *(short_name(job.group.model), job.group.train_set, job.group.method, str(job.seed)),
        "-" if run.parameters.trainable is None else f"{run.parameters.trainable:,}",
        "-" if run.parameters.percent is None else f"{run.parameters.percent:.3f}",
        "-" if run.memory is None else format_bytes(run.memory),
        "-" if run.training is None else format_duration(run.training, 2),
        "-" if run.evaluation is None else format_duration(run.evaluation, 2),
    )


def estimate(job: Job, work: Workload, device: Device) -> RunEstimate:
    """What a run trains, holds in memory and takes on the device."""
    recipe, options = job.recipe, job.evaluate
    builtin = matching_builtin(recipe.model)
    count = cached_count(builtin, recipe.method, json.dumps(recipe.adapter))
    if count.trainable is None or count.total is None or options is None:
        return RunEstimate(count)
    dtype_bytes = 4 if recipe.precision == "float32" else 2
    base = count.total - count.trainable
    shape = DecoderShape.of(cached_model_config(builtin))
    model = AdaptedModel(shape, base, count.trainable, dtype_bytes, recipe.quantization)
    longest = min(recipe.max_length, work.longest or recipe.max_length)
    batch, beams = options.batch_size, options.num_beams
    training_bytes = recipe_memory(model, recipe, longest).total
    return RunEstimate(
        count,
        max(training_bytes, evaluation_memory(model, work.length, batch, beams).total),
        training_seconds(model, recipe, work, device),
        evaluation_seconds(model, work, device, batch, beams),
    )


@cache
def base_size(model: str) -> int:
    """The number of parameters of a model without any adapter."""
    return base_parameters(cached_model_config(matching_builtin(model)))


def workload(train_set: TrainingSet, known: dict[str, int] | None, limit: int | None) -> Workload:
    """The rows and questions of a training set, read from its data, or `known` without it."""
    questions = sum(min(task.size, limit or task.size) for task in resolve_tasks(train_set.tasks))
    found = (source in toy_tasks() or Path(source).is_file() for source in train_set.sources)
    if known is not None and not all(found):
        return Workload(**known, longest=None, questions=questions)
    rows = [
        token_counts(row, source, number)
        for source in train_set.sources
        for number, row in enumerate(load_training_rows(source), 1)
    ]
    prompt, response = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Workload(len(rows), prompt, response, round(max(map(sum, rows))), questions)


def token_counts(row: dict[str, Any], source: str, number: int) -> tuple[float, float]:
    """Tokens of a row's prompt and response, by its characters; other forms are all prompt."""
    if "instruction" in row:
        prompt = render("alpaca", read_question(row, source, number))
        response = str(row.get("output", ""))
    else:
        prompt, response = " ".join(map(str, row.values())), ""
    return len(prompt) / CHARACTERS_PER_TOKEN, len(response) / CHARACTERS_PER_TOKEN
