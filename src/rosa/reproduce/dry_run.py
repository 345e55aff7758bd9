"""The parameters, memory and time of every run of a grid: `rosa reproduce --dry_run`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rosa.budget.activation_memory import DecoderShape
from rosa.budget.memory import AdaptedModel, evaluation_memory, recipe_memory
from rosa.budget.parameters import ParameterCount, base_parameters, builtin_models
from rosa.budget.time import Device, Workload, evaluation_seconds, training_seconds
from rosa.common.formatting import format_bytes, format_duration
from rosa.compare.budgets import cached_count, cached_model_config
from rosa.compare.grid import Grid, TrainingSet
from rosa.compare.plan import Job, ResolveRecipe, plan
from rosa.data.json_rows import optional_text_field, text_field
from rosa.data.prompts import instruction_prompt
from rosa.data.sources import load_training_rows, toy_tasks
from rosa.evaluate.tasks import resolve_tasks
from rosa.models.loading import short_name
from rosa.reproduce.targets import Target

CHARACTERS_PER_TOKEN = 4
HEADER = ("model", "training set", "method", "seed", "trainable", "%", "memory", "train", "ask")


@dataclass(frozen=True)
class RunEstimate:
    """One run: its parameters, and bytes and seconds by the formulas of `rosa.budget`.

    The last three are None if the method cannot be applied to the model.
    """

    job: Job
    count: ParameterCount
    memory: float | None = None
    training: float | None = None
    evaluation: float | None = None

    @property
    def seconds(self) -> float:
        """Training and evaluation."""
        return (self.training or 0.0) + (self.evaluation or 0.0)

    def cells(self) -> tuple[str, ...]:
        """The estimate as a row under `HEADER`."""
        group, count = self.job.group, self.count
        return (
            *(short_name(group.model), group.train_set, group.method, str(self.job.seed)),
            "-" if count.trainable is None else f"{count.trainable:,}",
            "-" if count.percent is None else f"{count.percent:.3f}",
            "-" if self.memory is None else format_bytes(self.memory),
            *(
                "-" if s is None else format_duration(s, 2)
                for s in (self.training, self.evaluation)
            ),
        )


def dry_run(target: Target, resolve: ResolveRecipe, device: Device) -> list[str]:
    """The lines that `--dry_run` prints: every run with its estimate, the total and remarks."""
    grid = target.grid
    assert grid is not None
    runs = estimate_runs(grid, plan(grid, resolve), device, target.workloads)
    rows = [HEADER, *(run.cells() for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * 3 + [str.rjust] * 6
    lines = [
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True))
        for row in rows
    ]
    hours = sum(run.seconds for run in runs) / 3600
    not_applicable = {r.count.title: r.count.note for r in runs if r.memory is None}
    return [
        f"{target.name}: {target.title}",
        *lines,
        f"{len(runs)} runs, about {hours:,.1f} hours on one {device.name} at "
        f"{device.utilization:.0%} of its peak, counting computation alone: expect more "
        "(guides/comparing.md)",
        *(f"{title}: {note}" for title, note in not_applicable.items()),
        *(
            f"{name}: {data} was not found; its known number and length of rows are used"
            for name, train_set in grid.training_sets.items()
            if train_set.sha256 and not Path(data := str(train_set.data)).is_file()
        ),
    ]


def estimate_runs(
    grid: Grid, jobs: Iterable[Job], device: Device, known: dict[str, dict[str, int]]
) -> list[RunEstimate]:
    """One estimate per run.

    Args:
        grid: the study.
        jobs: its runs.
        device: what they run on.
        known: `rows`, `prompt` and `response` of training sets, used where the data is missing.

    Raises:
        RosaError: a model whose configuration is not known here.
    """
    works = {
        name: workload(train_set, known.get(name), grid.evaluate.limit)
        for name, train_set in grid.training_sets.items()
    }
    return [_estimate(job, works[job.group.train_set], device) for job in jobs]


def _estimate(job: Job, work: Workload, device: Device) -> RunEstimate:
    recipe, options = job.recipe, job.evaluate
    builtin = matching_builtin(recipe.model)
    count = cached_count(builtin, recipe.method, json.dumps(recipe.adapter))
    if count.trainable is None or count.total is None or options is None:
        return RunEstimate(job, count)
    element = 4 if recipe.precision == "float32" else 2
    base = count.total - count.trainable
    shape = DecoderShape.of(cached_model_config(builtin))
    model = AdaptedModel(shape, base, count.trainable, element, recipe.quantization)
    longest = min(recipe.max_length, work.longest or recipe.max_length)
    batch, beams = options.batch_size, options.num_beams
    return RunEstimate(
        job,
        count,
        max(
            recipe_memory(model, recipe, longest).total,
            evaluation_memory(model, work.length, batch, beams).total,
        ),
        training_seconds(model, recipe, work, device),
        evaluation_seconds(model, work, device, batch, beams),
    )


@cache
def base_size(model: str) -> int:
    """The number of parameters of a model without any adapter."""
    return base_parameters(cached_model_config(matching_builtin(model)))


def matching_builtin(model: str) -> str:
    """The built-in configuration of a hub id: `google/gemma-2-9b` is `Gemma2-9B`; else the id.

    A folder is itself.
    """
    if Path(model).is_dir():
        return model
    names = {_letters(name): name for name in builtin_models()}
    return names.get(_letters(model.split("/")[-1].removesuffix("-hf")), model)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def workload(train_set: TrainingSet, known: dict[str, int] | None, limit: int | None) -> Workload:
    """The rows and questions of a training set, read from its data, or `known` without it."""
    questions = sum(min(task.size, limit or task.size) for task in resolve_tasks(train_set.tasks))
    sources = [train_set.data] if isinstance(train_set.data, str) else train_set.data
    if known is not None and not all(s in toy_tasks() or Path(s).is_file() for s in sources):
        return Workload(**known, longest=None, questions=questions)
    rows = [
        token_counts(row, source, number)
        for source in sources
        for number, row in enumerate(load_training_rows(source), 1)
    ]
    prompt, response = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    return Workload(len(rows), prompt, response, round(max(map(sum, rows))), questions)


def token_counts(row: dict[str, Any], source: str, number: int) -> tuple[float, float]:
    """Tokens of a row's prompt and response, by its characters; other forms are all prompt."""
    if "instruction" in row:
        prompt = instruction_prompt(
            text_field(row, "instruction", source, number),
            optional_text_field(row, "input", source, number),
        )
        response = str(row.get("output", ""))
    else:
        prompt, response = " ".join(map(str, row.values())), ""
    return len(prompt) / CHARACTERS_PER_TOKEN, len(response) / CHARACTERS_PER_TOKEN
