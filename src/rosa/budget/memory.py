"""What a run will need, before it is started: memory in bytes, time in seconds, by formula.

    model = Adapted(Shape.of(model_shape("Qwen2.5-7B")), base=7_615_616_512, trainable=19_927_040)
    training_memory(model, Tuning("rosa"), Batch(rows=4, longest=512)).total
    training_seconds(model, recipe, work, H100)

T tokens in a micro-batch (rows x longest row), e bytes per element of the model (2 in bf16, else
4), L layers, V vocabulary.

Memory of training:

    weights      e x base parameters; in 4 bits (NF4) 0.516 bytes and in 8 bits 1 for each weight of
                 the layers' linear maps: the numbers, and a scale in 8 bits for 64 of them
    adapter      4 x trainable, as much for gradients and 8 for AdamW's two moments: all float32
    activations  `rosa.budget.activations`
    logits       T x V x (e + 12): themselves, in float32, their log-softmax and its gradient

Memory of evaluation: weights, adapter values, and the key-value cache
2·e·(key heads x head_dim)·L per token of prompt and response, batch and beam.

Time: a token's forward pass is F = 2·N + 2·L·a·l operations, with N the parameters that multiply it
(all but the input embedding), a = query heads x head_dim and l the row's length. Training takes 2·F
(forward; backward to the inputs), one F more with gradient checkpointing, and 2 per trainable
parameter; layer selection saves some of that and is not counted. Prompts take F per token, and each
new token of a batch F per row. A pass over a micro-batch or a new token cannot be faster than
reading the weights once, so the longer of the two counts. The device does its peak times the
utilisation.

What the formulas leave out: the CUDA context, fragmentation, the time to launch kernels, a method's
own work on whole weight matrices (DoRA's norms, BOFT's rotations, VeRA's shared matrices),
validation and saving. Small micro-batches do not fill a large GPU: expect longer times than these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from rosa.budget.activations import Batch, Shape, Tuning, saved_bytes

if TYPE_CHECKING:
    from rosa.train.recipe import Recipe

VALUE_BYTES = GRADIENT_BYTES = 4  # of a trained parameter, float32
MOMENT_BYTES = 8  # AdamW's two
LOGIT_BYTES = 12  # float32 copy, log-softmax, gradient
# Bytes of a weight in few bits; NF4's scales have 8 bits, and 256 of them one scale of 32.
QUANTIZED_BYTES = {"nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


@dataclass(frozen=True)
class Device:
    """A device by its data sheet: peak operations and bytes per second.

    `utilisation` is the share of both that a training loop reaches; an assumption, not a measure.
    """

    name: str
    flops: float
    bandwidth: float
    utilisation: float = 0.35

    @property
    def sustained_flops(self) -> float:
        return self.flops * self.utilisation

    @property
    def sustained_bandwidth(self) -> float:
        return self.bandwidth * self.utilisation


H100 = Device("H100 in bf16", 989e12, 3.35e12)
CPU_CORE = Device("CPU core in float32", 90e9, 10e9)


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter: `base` parameters without the adapter's, `trainable` of it."""

    shape: Shape
    base: int
    trainable: int
    element: int = 2  # bytes
    quantization: str | None = None  # of the layers' linear maps, a key of `QUANTIZED_BYTES`

    @property
    def weight_bytes(self) -> float:
        if self.quantization is None:
            return self.element * self.base
        few = self.shape.linears
        return QUANTIZED_BYTES[self.quantization] * few + self.element * (self.base - few)

    def forward_flops(self, length: float) -> float:
        """Operations of one token's forward pass in a row of `length` tokens."""
        shape = self.shape
        embedding = 0 if shape.tied else shape.vocabulary * shape.hidden
        return 2 * (self.base - embedding) + 2 * shape.layers * shape.attention * length


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak."""

    weights: float
    adapter: float  # values alone
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Work:
    """Rows to train on, and the answers asked afterwards; lengths in tokens.

    Attributes:
        rows: training rows.
        prompt, response: mean length of each part of a row.
        longest: the longest row; None where it is not known, and as long as a recipe allows.
        questions: test questions of all tasks; their prompts and answers are taken to be as long
            as the training rows'.
    """

    rows: int
    prompt: float
    response: float
    longest: int | None
    questions: int


def training_memory(model: Adapted, tuning: Tuning, batch: Batch) -> Memory:
    """Bytes at the peak of a training step."""
    return Memory(
        model.weight_bytes,
        VALUE_BYTES * model.trainable,
        GRADIENT_BYTES * model.trainable,
        MOMENT_BYTES * model.trainable,
        saved_bytes(model.shape, tuning, batch),
        batch.tokens * model.shape.vocabulary * (model.element + LOGIT_BYTES),
    )


def recipes_memory(model: Adapted, recipe: Recipe, longest: int) -> Memory:
    """Bytes at the peak of training by a recipe on rows of up to `longest` tokens."""
    checkpointing = recipe.gradient_checkpointing
    batch = Batch(recipe.batch_size, longest, model.element, checkpointing=checkpointing)
    return training_memory(model, Tuning.of(recipe), batch)


def evaluation_memory(model: Adapted, length: float, batch: int, beams: int = 1) -> Memory:
    """Bytes at the peak of generation; `length` of a prompt with its response."""
    shape, rows = model.shape, batch * beams
    per_token = 2 * model.element * shape.key_heads * shape.head_dim * shape.layers
    logits = rows * shape.vocabulary * (model.element + LOGIT_BYTES)
    values = VALUE_BYTES * model.trainable
    return Memory(model.weight_bytes, values, logits=logits, cache=rows * length * per_token)


def training_seconds(model: Adapted, recipe: Recipe, work: Work, device: Device) -> float:
    """All epochs (or steps), validation and saving left out."""
    per_step = recipe.batch_size * recipe.gradient_accumulation
    rows = recipe.max_steps * per_step if recipe.max_steps else recipe.epochs * work.rows
    length = work.prompt + work.response
    passes = 3 if recipe.gradient_checkpointing else 2
    per_token = passes * model.forward_flops(length) + 2 * model.trainable
    micro_batch = max(
        recipe.batch_size * length * per_token / device.sustained_flops,
        passes * model.weight_bytes / device.sustained_bandwidth,
    )
    return rows / recipe.batch_size * micro_batch


def evaluation_seconds(
    model: Adapted, work: Work, device: Device, batch: int, beams: int = 1
) -> float:
    """All questions: the prompts, then the answers token by token."""
    forward = model.forward_flops(work.prompt + work.response) / device.sustained_flops
    prompts = work.questions * work.prompt * forward
    step = max(batch * beams * forward, model.weight_bytes / device.sustained_bandwidth)
    return prompts + math.ceil(work.questions / batch) * work.response * step
