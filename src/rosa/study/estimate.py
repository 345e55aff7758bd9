"""What a run will need, before it is started: memory in bytes, time in seconds, by formula.

    model = Adapted(Shape.of(model_shape("Qwen2.5-7B")), base=7_615_616_512, trainable=19_927_040)
    training_memory(model, recipe, longest=512).total
    training_seconds(model, recipe, work, H100)

T tokens in a micro-batch (rows x longest row), e bytes per element of the model (2 in bf16, else
4), d hidden size, f feed-forward size, a = query heads x head_dim, L layers, V vocabulary.

Memory of training:

    weights      e x base parameters
    adapter      16 x trainable: value, gradient and AdamW's two moments, in float32
    activations  T x 4·d for the last norm and T x L x layer, where a layer keeps, per token,
                   4·d for each norm, its input in float32, and as much again where it is trained
                   e·4·a for attention (q, k and v repeated to all heads, output) + 4 x query heads;
                   where attention is not fused (Gemma2), 8 x query heads x longest row more
                   e·3·f for the feed-forward (gate, its activation, up)
                   e x KEPT x the inputs of the linear layers that the method adapts
                 With gradient checkpointing e·d per token and layer, and one layer in full.
    logits       T x V x (e + 12): themselves, in float32, their log-softmax and its gradient

Memory of evaluation: weights, adapter values, and the key-value cache
2·e·(key heads x head_dim)·L per token of prompt and response, batch and beam.

Time: a token's forward pass is F = 2·N + 2·L·a·l operations, with N the parameters that multiply it
(all but the input embedding) and l the row's length. Training takes 2·F (forward; backward to the
inputs), one F more with gradient checkpointing, and 2 per trainable parameter; layer selection
saves some of that and is not counted. Prompts take F per token, and each new token of a batch F per
row. A pass over a micro-batch or a new token cannot be faster than reading the weights once, so the
longer of the two counts. The device does its peak times the utilisation.

What the formulas leave out: the CUDA context, fragmentation, the time to launch kernels, a method's
own work on whole weight matrices (DoRA's norms, BOFT's rotations, VeRA's shared matrices),
validation and saving. Small micro-batches do not fill a large GPU: expect longer times than these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rosa.study.methods import load_method

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from rosa.study.recipe import Recipe

TRAINED_BYTES = 16  # float32 value and gradient, and AdamW's two moments
LOGIT_BYTES = 12  # float32 copy, log-softmax, gradient
# Elements that adapters keep per input element of the layers they sit on: theirs are small, so it
# is the input itself (1), unless the method works on outputs too or reduces its input first.
KEPT = {"dora": 4.5, "adalora": 2.0, "c3a": 2.0, "bone": 0.0}


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
class Shape:
    """What the formulas need of a decoder."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    norms: int  # per layer
    tied: bool  # one matrix embeds and gives the logits
    fused_attention: bool

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """The shape of a causal language model's configuration."""
        text: Any = config.get_text_config()
        heads = text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            feed_forward=text.intermediate_size,
            heads=heads,
            key_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=head_dim,
            vocabulary=text.vocab_size,
            norms=4 if text.model_type.startswith(("gemma2", "gemma3")) else 2,
            tied=bool(text.tie_word_embeddings),
            fused_attention=getattr(text, "attn_logit_softcapping", None) is None,
        )

    @property
    def attention(self) -> int:
        """Elements of all query heads of a token."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter: `base` parameters without the adapter's, `trainable` of it."""

    shape: Shape
    base: int
    trainable: int
    element: int = 2  # bytes

    @property
    def weight_bytes(self) -> int:
        return self.element * self.base

    def forward_flops(self, length: float) -> float:
        """Operations of one token's forward pass in a row of `length` tokens."""
        shape = self.shape
        embedding = 0 if shape.tied else shape.vocabulary * shape.hidden
        return 2 * (self.base - embedding) + 2 * shape.layers * shape.attention * length


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak."""

    weights: float
    adapter: float
    activations: float = 0.0
    logits: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.logits + self.cache


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


def training_memory(model: Adapted, recipe: Recipe, longest: int) -> Memory:
    """Bytes at the peak of training on rows of up to `longest` tokens."""
    tokens = recipe.batch_size * longest
    saved = saved_bytes(model.shape, recipe, longest, model.element)
    logits = tokens * model.shape.vocabulary * (model.element + LOGIT_BYTES)
    return Memory(model.weight_bytes, TRAINED_BYTES * model.trainable, saved, logits)


def saved_bytes(shape: Shape, recipe: Recipe, longest: int, element: int = 2) -> float:
    """What the forward pass keeps for the backward pass, logits not included."""
    tokens = recipe.batch_size * longest
    layer = tokens * layer_bytes(shape, recipe, longest, element)
    last_norm = tokens * 4 * shape.hidden
    if recipe.gradient_checkpointing:
        return tokens * shape.layers * element * shape.hidden + layer + last_norm
    return shape.layers * layer + last_norm


def layer_bytes(shape: Shape, recipe: Recipe, longest: int, element: int = 2) -> float:
    """What one layer keeps per token, without checkpointing."""
    norms = shape.norms * shape.hidden * (8 if trained_norms(recipe) else 4)
    attention = element * 4 * shape.attention + 4 * shape.heads
    if not shape.fused_attention:
        attention += 8 * shape.heads * longest
    feed_forward = element * 3 * shape.feed_forward
    adapters = element * KEPT.get(recipe.method, 1.0) * adapted_inputs(shape, recipe, element)
    return norms + attention + feed_forward + adapters


def trained_norms(recipe: Recipe) -> bool:
    """Whether the method trains the norms of the layers."""
    keys = {**load_method(recipe.method).kwargs, **recipe.adapter}
    kind = load_method(recipe.method).peft_config
    saved = any("norm" in str(name) for name in keys.get("modules_to_save") or ())
    return (
        kind == "LNTuningConfig"
        or saved
        or (kind == "RosaConfig" and keys.get("train_norms", True))
    )


def adapted_inputs(shape: Shape, recipe: Recipe, element: int = 2) -> int:
    """Elements per token and layer that enter the linear layers the method adapts.

    In half precision every layer keeps a copy of its own; in float32 those with one input share it.
    """
    d, a, f = shape.hidden, shape.attention, shape.feed_forward
    inputs = {"q_proj": ("x", d), "k_proj": ("x", d), "v_proj": ("x", d), "o_proj": ("o", a)}
    inputs |= {"gate_proj": ("y", d), "up_proj": ("y", d), "down_proj": ("z", f)}
    method = load_method(recipe.method)
    if method.peft_config == "RosaConfig":
        return d
    targets = {**method.kwargs, **recipe.adapter}.get("target_modules") or ()
    names = inputs if targets == "all-linear" else [n for n in inputs if n in targets]
    if element == 4:
        return sum(dict(inputs[name] for name in names).values())
    return sum(inputs[name][1] for name in names)


def evaluation_memory(model: Adapted, length: float, batch: int, beams: int = 1) -> Memory:
    """Bytes at the peak of generation; `length` of a prompt with its response."""
    shape, rows = model.shape, batch * beams
    per_token = 2 * model.element * shape.key_heads * shape.head_dim * shape.layers
    logits = rows * shape.vocabulary * (model.element + LOGIT_BYTES)
    values = 4 * model.trainable
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
