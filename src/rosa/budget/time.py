"""Time of training and evaluation in seconds, by formula, for a device known by its data sheet.

    training_seconds(model, recipe, Workload(rows, prompt, response, None, questions), H100)

A token's forward pass takes F = 2·N + 2·L·a·l operations: N the parameters that multiply it (all
but the input embedding), L layers, a = query heads x head_dim, l the row's length. Training takes
2·F (forward; backward to the inputs), one F more with gradient checkpointing, and 2 per trainable
parameter; what layer selection saves is not counted. Prompts take F per token, and each new token
of a batch F per row. A pass over a micro-batch or a new token takes at least as long as reading the
weights once. The device reaches its peak times the utilization.

Left out: launching kernels, a method's own work on whole weight matrices, validation and saving.
Small micro-batches do not fill a large GPU: expect longer times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rosa.budget.memory import AdaptedModel

if TYPE_CHECKING:
    from rosa.train.recipe import Recipe


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: peak operations and bytes per second.

    `utilization` is the share of both that a training loop reaches; assumed, not measured.
    """

    name: str
    flops: float
    bandwidth: float
    utilization: float = 0.35

    def seconds(self, flops: float, moved: float) -> float:
        """The longer of `flops` operations and `moved` bytes."""
        return max(flops / self.flops, moved / self.bandwidth) / self.utilization


H100 = Device("H100 in bf16", 989e12, 3.35e12)
CPU_CORE = Device("CPU core in float32", 90e9, 10e9)


@dataclass(frozen=True)
class Workload:
    """Rows to train on and questions to evaluate; lengths in tokens."""

    rows: int
    prompt: float  # mean, of rows and questions
    response: float
    longest: int | None  # row; None where unknown, and as long as a recipe allows
    questions: int  # of all tasks

    @property
    def length(self) -> float:
        """Mean length of a row."""
        return self.prompt + self.response


def forward_flops(model: AdaptedModel, length: float) -> float:
    """Operations of one token's forward pass in a row of `length` tokens."""
    shape = model.shape
    embedding = 0 if shape.tied else shape.vocab * shape.hidden
    return 2 * (model.base - embedding) + 2 * shape.layers * shape.query_width * length


def training_seconds(model: AdaptedModel, recipe: Recipe, work: Workload, device: Device) -> float:
    """All epochs (or steps), without validation and saving."""
    per_step = recipe.batch_size * recipe.gradient_accumulation
    rows = recipe.max_steps * per_step if recipe.max_steps else recipe.epochs * work.rows
    passes = 3 if recipe.gradient_checkpointing else 2
    per_token = passes * forward_flops(model, work.length) + 2 * model.trainable
    flops = recipe.batch_size * work.length * per_token
    return rows / recipe.batch_size * device.seconds(flops, passes * model.weight_bytes)


def evaluation_seconds(
    model: AdaptedModel, work: Workload, device: Device, batch: int, beams: int = 1
) -> float:
    """All questions: the prompts, then the answers token by token."""
    forward = forward_flops(model, work.length)
    prompts = device.seconds(work.questions * work.prompt * forward, 0)
    step = device.seconds(batch * beams * forward, model.weight_bytes)
    return prompts + math.ceil(work.questions / batch) * work.response * step
