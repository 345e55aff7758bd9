"""Activation memory: the bytes that a forward pass keeps for the backward pass, by formula.

    batch = MicroBatch(rows=4, length=1024)
    saved_bytes(DecoderShape.of(load_model_config("Qwen2.5-7B")), AdapterSpec("rosa"), batch)

Per token, with e bytes per element of model and adapter (2 in bf16 under autocast, else 4), d the
hidden size, f the intermediate size, h and k query and key heads of size s, and l the length of the
longest row, each layer keeps

    norms         4·d + 4 each: the input in float32 and 1/rms. Trained by RoSA e·d; trained
                  otherwise 4·d + e·d. Norms of heads (Qwen3, Gemma3): (4·s + 4)·(h + k)
    attention     fused: e·s·(2·h + 2·k) + 4·h for q, k, v, the output and its log-sum-exp; where
                  rows are padded, k and v are repeated for every query head (unless k = 1) and the
                  mask is a matrix: e·s·4·h + 4·h + e·l.
                  "eager": e·s·3·h, and softmax's 4·h·l, of which half precision keeps a second
                  copy, e·h·l; a cap on the logits (Gemma2) keeps e·h·l more
    feed-forward  e·3·f: gate, its activation, up
    RoSA          e·(d + r + h·d_low) for its input, A's output and P, e·(h + k)·d_low for the
                  low-frequency slices of q and k, and e·k·d_low for S_k, where k < h
    DyPAM         e·(d + r + h·d_e) for its input, A's output and m, e·k·d_e for the mean of m,
                  where k < h, and e·s·(h + k)·3/2 for the factors of the pairs and for q and k
    other         e x KEPT x the inputs of the linear layers that the method adapts, and LoRA's
                  rank at each. In float32 layers share an input; in half precision each keeps its
                  own copy.

and the last norm 4·d, the rotation 2·e·s per position. With gradient checkpointing it is e·d per
token and layer, and one layer in full. What the loss keeps of the logits is `loss_bytes`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.rope.layout import low_pair_count

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Elements that a method keeps per input element of the layers it adapts: the input itself (1),
# unless it works on outputs too or reduces its input first.
KEPT = {"dora": 4.5, "adalora": 2.0, "c3a": 2.0, "bone": 0.0}
_REQUIRED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class DecoderShape:
    """The sizes of a dense decoder that the formulas need."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norms: int  # per layer
    tied: bool  # one matrix embeds and gives the logits
    fused_attention: bool
    head_norms: bool = False  # of queries and keys

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecoderShape:
        """The shape of a causal language model's configuration.

        Raises RosaError for a mixture of experts, and for a model without attention and a
        feed-forward network in each layer.
        """
        text: Any = config.get_text_config()
        if any(getattr(text, name, None) is None for name in _REQUIRED) or any(
            getattr(text, name, None) for name in _EXPERTS
        ):
            raise RosaError(
                f"memory and time are estimated for dense decoders only, which "
                f"'{text.model_type}' is not; count its parameters without --memory"
            )
        heads = text.num_attention_heads
        return cls(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocab=text.vocab_size,
            norms=4 if text.model_type.startswith(("gemma2", "gemma3")) else 2,
            tied=bool(text.tie_word_embeddings),
            fused_attention=getattr(text, "attn_logit_softcapping", None) is None,
            head_norms=text.model_type.startswith(("qwen3", "gemma3")),
        )

    @property
    def query_width(self) -> int:
        """Elements of a token's queries."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Elements of a token's keys."""
        return self.kv_heads * self.head_dim

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers of all decoder layers, biases left out."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


@dataclass(frozen=True)
class AdapterSpec:
    """A method and its arguments; without a method all but the embedding's output is frozen."""

    method: str | None = None
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def peft_config(self) -> str:
        """The class name of the method's PEFT config; empty without a method."""
        return load_method(self.method).peft_config if self.method else ""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of its PEFT config that are not the class's defaults."""
        return {**load_method(self.method).kwargs, **self.given} if self.method else {}

    @property
    def is_rosa(self) -> bool:
        return self.peft_config == "RosaConfig"

    @property
    def trains_norms(self) -> bool:
        """Whether the norms of the layers are trained."""
        saved = any("norm" in str(name) for name in self.arguments.get("modules_to_save") or ())
        by_rosa = self.is_rosa and self.arguments.get("train_norms", True)
        return self.peft_config == "LNTuningConfig" or saved or by_rosa


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at a time, and how."""

    rows: int
    length: int  # of the longest row, in tokens; the others are padded to it
    dtype_bytes: int = 2  # per element of the model
    padded: bool = True  # rows differ in length
    eager: bool = False  # attention without a fused kernel
    gradient_checkpointing: bool = False  # layers are recomputed in the backward pass

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def saved_bytes(shape: DecoderShape, adapter: AdapterSpec, batch: MicroBatch) -> float:
    """What the forward pass keeps for the backward pass, logits not included."""
    e = batch.dtype_bytes
    layer = batch.tokens * layer_bytes(shape, adapter, batch)
    once = batch.tokens * 4 * shape.hidden + batch.length * 2 * e * shape.head_dim
    if batch.gradient_checkpointing:
        return batch.tokens * shape.layers * e * shape.hidden + layer + once
    return shape.layers * layer + once


def loss_bytes(shape: DecoderShape, batch: MicroBatch) -> int:
    """What the loss keeps of the logits: their log-softmax, a capped copy (Gemma2), the labels."""
    capped = 0 if shape.fused_attention else batch.dtype_bytes
    return batch.tokens * (shape.vocab * (4 + capped) + 8)


def layer_bytes(shape: DecoderShape, adapter: AdapterSpec, batch: MicroBatch) -> float:
    """What one layer keeps per token, without checkpointing."""
    return (
        _norm_bytes(shape, adapter, batch.dtype_bytes)
        + _attention_bytes(shape, batch)
        + batch.dtype_bytes * 3 * shape.intermediate
        + _adapter_bytes(shape, adapter, batch)
    )


def low_frequency_width(shape: DecoderShape, adapter: AdapterSpec) -> tuple[int, int]:
    """Elements of a token's queries and of its keys that RoAE modulates, of fully rotated heads."""
    every = adapter.arguments.get("pairs") == "all"
    r_low = 1.0 if every else adapter.arguments.get("r_low", 0.25)
    d_low = 2 * low_pair_count(shape.head_dim, shape.head_dim, r_low)
    return d_low * shape.heads, d_low * shape.kv_heads


def _norm_bytes(shape: DecoderShape, adapter: AdapterSpec, e: int) -> int:
    """Of a layer's norms, and of those of its heads, which no method trains."""
    norm = 4 * shape.hidden + 4
    if adapter.trains_norms:
        norm = e * shape.hidden if adapter.is_rosa else norm + e * shape.hidden
    of_heads = 4 * (shape.head_dim + 1) * (shape.heads + shape.kv_heads)
    return shape.norms * norm + (of_heads if shape.head_norms else 0)


def _attention_bytes(shape: DecoderShape, batch: MicroBatch) -> int:
    """Of attention between the projections."""
    e, queries = batch.dtype_bytes, shape.query_width
    if batch.eager or not shape.fused_attention:
        half, capped = e == 2, not shape.fused_attention
        return 3 * e * queries + shape.heads * batch.length * (4 + e * (half + capped))
    repeated = batch.padded and shape.kv_heads > 1  # a single head is expanded without a copy
    keys = queries if repeated else shape.key_width
    mask = e * batch.length if batch.padded else 0
    return 2 * e * (queries + keys) + 4 * shape.heads + mask


def _adapter_bytes(shape: DecoderShape, adapter: AdapterSpec, batch: MicroBatch) -> float:
    """What the method keeps on top of the frozen layer, its norms left out."""
    e, arguments = batch.dtype_bytes, adapter.arguments
    if adapter.method is None or adapter.peft_config == "LNTuningConfig":
        return 0.0
    if adapter.is_rosa:
        rank = arguments.get("r", 128) if arguments.get("projection") in (None, "low_rank") else 0
        queries, keys = low_frequency_width(shape, adapter)
        signal = shape.hidden + rank + queries + (keys if shape.kv_heads != shape.heads else 0)
        return e * (signal + queries + keys)
    if adapter.peft_config == "DypamConfig":
        rank, features = arguments.get("r", 128), arguments.get("feature_dim", 64)
        grouped = shape.kv_heads if shape.kv_heads != shape.heads else 0
        m = shape.hidden + rank + (shape.heads + grouped) * features
        return e * (m + 1.5 * (shape.query_width + shape.key_width))
    d, q, f = shape.hidden, shape.query_width, shape.intermediate
    # The tensor that each linear layer reads, and its elements.
    inputs = {"q_proj": ("x", d), "k_proj": ("x", d), "v_proj": ("x", d), "o_proj": ("o", q)}
    inputs |= {"gate_proj": ("y", d), "up_proj": ("y", d), "down_proj": ("z", f)}
    targets = arguments.get("target_modules") or ()
    if targets != "all-linear":
        inputs = {name: value for name, value in inputs.items() if name in targets}
    kept = _input_width(inputs, shape, batch)
    if adapter.peft_config != "LoraConfig" or arguments.get("use_dora"):
        return e * KEPT.get(load_method(adapter.method).name, 1.0) * kept
    return e * (kept + len(inputs) * arguments.get("r", 8))


def _input_width(inputs: dict[str, tuple[str, int]], shape: DecoderShape, batch: MicroBatch) -> int:
    """Elements per token of those inputs that are kept for adapters alone."""
    if batch.dtype_bytes == 4:
        once = dict(inputs.values())
        if shape.fused_attention and not batch.eager:
            once.pop("o", None)  # the kernel keeps its output already
        return sum(once.values())
    return sum(width for _, width in inputs.values())
