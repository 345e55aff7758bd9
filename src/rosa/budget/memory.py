"""Memory of a training step and of generation, in bytes at the peak, by formula.

    shape = DecoderShape.of(load_model_config("Qwen2.5-7B"))
    model = AdaptedModel(shape, base=7_615_616_512, trainable=19_927_040)
    training_memory(model, AdapterSpec("rosa"), MicroBatch(rows=4, length=512)).total

With T tokens in a micro-batch (rows x longest row), e bytes per element of the model (2 in bf16,
else 4), L layers and V the vocabulary size, training holds

    weights      e x base parameters; in 4 bits (NF4) 0.516 bytes and in 8 bits 1 for each weight of
                 the layers' linear maps: the numbers, and a scale in 8 bits for 64 of them
    adapter      4 x trainable, as much for gradients and 8 for AdamW's two moments: all float32
    activations  `rosa.budget.activation_memory`
    logits       T x V x (e + 12): themselves, in float32, their log-softmax and its gradient

and generation the weights, the adapter's values and the key-value cache, 2·e·(key heads x
head_dim)·L per token of prompt and response, batch and beam.

Left out: the CUDA context, fragmentation, kernels' workspaces, and what a method does with whole
weight matrices (DoRA's norms, BOFT's rotations, VeRA's shared matrices).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from rosa.budget.activation_memory import AdapterSpec, DecoderShape, MicroBatch, saved_bytes
from rosa.budget.parameters import base_parameters, count_parameters

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rosa.methods.registry import Method
    from rosa.train.recipe import Recipe

VALUE_BYTES = GRADIENT_BYTES = 4  # of a trained parameter, float32
MOMENT_BYTES = 8  # AdamW's two
LOGIT_BYTES = 12  # float32 copy, log-softmax, gradient
# Bytes of a quantized weight; NF4's scales have 8 bits, and 256 of them share one of 32.
QUANTIZED_BYTES = {"nf4": 1 / 2 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}
PRECISIONS: dict[str, tuple[int, str | None]] = {  # bytes per element, quantization of the base
    "bfloat16": (2, None),
    "float32": (4, None),
    "nf4": (2, "nf4"),
    "int8": (2, "int8"),
}


@dataclass(frozen=True)
class AdaptedModel:
    """A model with an adapter: `base` parameters without the adapter's, `trainable` of it."""

    shape: DecoderShape
    base: int
    trainable: int
    dtype_bytes: int = 2
    quantization: str | None = None  # of the layers' linear maps, a key of `QUANTIZED_BYTES`

    @property
    def weight_bytes(self) -> float:
        if self.quantization is None:
            return self.dtype_bytes * self.base
        quantized = self.shape.linear_weights
        rest = self.dtype_bytes * (self.base - quantized)
        return QUANTIZED_BYTES[self.quantization] * quantized + rest


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak, by what holds them."""

    weights: float
    adapter: float  # values alone
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0  # keys and values of generation

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class MethodMemory:
    """The memory of training with one method; None, with a note, where it cannot be applied."""

    method: str  # empty for the frozen model
    title: str
    memory: MemoryEstimate | None
    note: str = ""

    def to_json(self, model: str) -> dict[str, Any]:
        """The row that `rosa params --memory --json` prints, in whole bytes."""
        memory = self.memory
        sizes = {} if memory is None else {k: round(v) for k, v in asdict(memory).items()}
        sizes.pop("cache", None)
        return {
            "model": model,
            "method": self.method,
            "bytes": sizes,
            "total": None if memory is None else round(memory.total),
            "note": self.note,
        }


def training_memory(model: AdaptedModel, adapter: AdapterSpec, batch: MicroBatch) -> MemoryEstimate:
    """Bytes at the peak of a training step."""
    return MemoryEstimate(
        model.weight_bytes,
        VALUE_BYTES * model.trainable,
        GRADIENT_BYTES * model.trainable,
        MOMENT_BYTES * model.trainable,
        saved_bytes(model.shape, adapter, batch),
        batch.tokens * model.shape.vocab * (model.dtype_bytes + LOGIT_BYTES),
    )


def recipe_memory(model: AdaptedModel, recipe: Recipe, length: int) -> MemoryEstimate:
    """Bytes at the peak of training by a recipe on rows of up to `length` tokens."""
    checkpointing = recipe.gradient_checkpointing
    batch = MicroBatch(
        recipe.batch_size, length, model.dtype_bytes, gradient_checkpointing=checkpointing
    )
    return training_memory(model, AdapterSpec(recipe.method, dict(recipe.adapter)), batch)


def evaluation_memory(
    model: AdaptedModel, length: float, batch: int, beams: int = 1
) -> MemoryEstimate:
    """Bytes at the peak of generation; `length` of a prompt with its response."""
    shape, rows = model.shape, batch * beams
    cache = rows * length * 2 * model.dtype_bytes * shape.key_width * shape.layers
    logits = rows * shape.vocab * (model.dtype_bytes + LOGIT_BYTES)
    values = VALUE_BYTES * model.trainable
    return MemoryEstimate(model.weight_bytes, values, logits=logits, cache=cache)


def memory_by_method(
    config: PretrainedConfig,
    methods: Iterable[tuple[Method, dict[str, Any]]],
    batch: MicroBatch,
    quantization: str | None = None,
) -> list[MethodMemory]:
    """Training memory of the frozen model, then of each method with its arguments.

    Raises:
        RosaError: the model is no dense decoder.
    """
    shape, base, e = DecoderShape.of(config), base_parameters(config), batch.dtype_bytes
    frozen = AdaptedModel(shape, base, 0, e, quantization)
    found = [MethodMemory("", "frozen model", training_memory(frozen, AdapterSpec(), batch))]
    for method, arguments in methods:
        count = count_parameters(config, method.name, arguments)
        memory = None
        if count.trainable is not None:
            model = AdaptedModel(shape, base, count.trainable, e, quantization)
            memory = training_memory(model, AdapterSpec(method.name, arguments), batch)
        note = "" if memory else count.note
        found.append(MethodMemory(method.name, method.title, memory, note))
    return found
