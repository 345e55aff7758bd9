"""What a forward pass keeps for the backward pass, in bytes, by formula.

    batch = Batch(rows=4, longest=1024)
    saved_bytes(Shape.of(model_shape("Qwen2.5-7B")), Tuning("rosa"), batch)

Per token, with e bytes per element of the model (2 in bf16, else 4), e' of what adapters compute in
(e under autocast), d hidden size, f feed-forward size, h and k query and key heads of size s, l the
length of the longest row. Each layer keeps

    norms         4·d + 4 each: its input in float32 and 1/rms. Trained as RoSA trains them e·d;
                  otherwise trained 4·d + e·d. Norms of heads (Qwen3, Gemma3): (4·s + 4)·(h + k)
    attention     fused: e·s·(2·h + 2·k) + 4·h for q, k, v, the output and its log-sum-exp; where
                  rows are padded k and v are repeated for every query head (unless k = 1), and the
                  mask is a matrix: e·s·4·h + 4·h + e·l.
                  "eager": e·s·3·h, and softmax's 4·h·l, of which half precision keeps a second
                  copy, e·h·l; a cap on the logits (Gemma2) keeps e·h·l more
    feed-forward  e·3·f: gate, its activation, up
    RoSA          e'·(d + r + h·d_low): input, A's output, P; e·(h + k)·d_low: the low-frequency
                  slices of q and k; e'·k·d_low: S_k, where k < h
    other         e' x KEPT x the inputs of the linear layers that the method adapts, and LoRA's
                  rank at each. In float32 the layers share what they read; in half precision each
                  has a copy of its own.

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

    from rosa.train.recipe import Recipe

# Elements that adapters keep per input element of the layers they sit on: theirs are small, so it
# is the input itself (1), unless the method works on outputs too or reduces its input first.
KEPT = {"dora": 4.5, "adalora": 2.0, "c3a": 2.0, "bone": 0.0}
_WITH_HEAD_NORMS = ("qwen3", "gemma3")
_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


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
    head_norms: bool = False  # of queries and keys

    @classmethod
    def of(cls, config: PretrainedConfig) -> Shape:
        """The shape of a causal language model's configuration.

        Raises RosaError for a model that the formulas are not about: with experts, or without
        attention and a feed-forward network in each layer.
        """
        text: Any = config.get_text_config()
        if any(getattr(text, name, None) is None for name in _NEEDED) or any(
            getattr(text, name, None) for name in _EXPERTS
        ):
            raise RosaError(
                f"the formulas of memory and time are those of dense decoders, which "
                f"'{text.model_type}' is not; count its parameters without --memory"
            )
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
            head_norms=text.model_type.startswith(_WITH_HEAD_NORMS),
        )

    @property
    def attention(self) -> int:
        """Elements of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Elements of all key heads of a token."""
        return self.key_heads * self.head_dim

    @property
    def linears(self) -> int:
        """Weights of the linear layers of all decoder layers, biases left out."""
        attention = 2 * self.hidden * (self.attention + self.keys)
        return self.layers * (attention + 3 * self.hidden * self.feed_forward)


@dataclass(frozen=True)
class Tuning:
    """A method and its keys; without a method the model is frozen, its first input excepted."""

    method: str | None = None
    adapter: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, recipe: Recipe) -> Tuning:
        return cls(recipe.method, dict(recipe.adapter))

    @property
    def peft_config(self) -> str:
        """The name of its class; empty for none."""
        return load_method(self.method).peft_config if self.method else ""

    @property
    def keys(self) -> dict[str, Any]:
        """The arguments of the class that are not its defaults."""
        return {**load_method(self.method).kwargs, **self.adapter} if self.method else {}

    @property
    def is_rosa(self) -> bool:
        return self.peft_config == "RosaConfig"

    @property
    def trains_norms(self) -> bool:
        """Whether the norms of the layers are trained."""
        saved = any("norm" in str(name) for name in self.keys.get("modules_to_save") or ())
        return (
            self.peft_config == "LNTuningConfig"
            or saved
            or (self.is_rosa and self.keys.get("train_norms", True))
        )


@dataclass(frozen=True)
class Batch:
    """What goes through the model at a time, and how.

    Attributes:
        rows: rows of the micro-batch.
        longest: its longest row, in tokens; the others are padded to it.
        element: bytes per element of the model.
        padded: whether rows differ in length.
        eager: attention without a fused kernel.
        checkpointing: gradient checkpointing.
        autocast: adapters compute in the model's precision, as `rosa train` does; else in float32.
    """

    rows: int
    longest: int
    element: int = 2
    padded: bool = True
    eager: bool = False
    checkpointing: bool = False
    autocast: bool = True

    @property
    def tokens(self) -> int:
        return self.rows * self.longest

    @property
    def adapters(self) -> int:
        """Bytes per element of what adapters compute."""
        return self.element if self.autocast else 4


def saved_bytes(shape: Shape, tuning: Tuning, batch: Batch) -> float:
    """What the forward pass keeps for the backward pass, logits not included."""
    layer = batch.tokens * layer_bytes(shape, tuning, batch)
    once = batch.tokens * 4 * shape.hidden + batch.longest * 2 * batch.element * shape.head_dim
    if batch.checkpointing:
        return batch.tokens * shape.layers * batch.element * shape.hidden + layer + once
    return shape.layers * layer + once


def loss_bytes(shape: Shape, batch: Batch) -> int:
    """What the loss keeps of the logits: their log-softmax, a capped copy (Gemma2), the labels."""
    capped = 0 if shape.fused_attention else batch.element
    return batch.tokens * (shape.vocabulary * (4 + capped) + 8)


def layer_bytes(shape: Shape, tuning: Tuning, batch: Batch) -> float:
    """What one layer keeps per token, without checkpointing."""
    return (
        norm_bytes(shape, tuning, batch.element)
        + attention_bytes(shape, batch)
        + batch.element * 3 * shape.feed_forward
        + adapter_bytes(shape, tuning, batch)
    )


def norm_bytes(shape: Shape, tuning: Tuning, element: int) -> int:
    """Of the norms of a layer, and of those of its heads, which no method trains."""
    own = 4 * shape.hidden + 4
    if tuning.trains_norms:
        own = element * shape.hidden if tuning.is_rosa else own + element * shape.hidden
    of_heads = 4 * (shape.head_dim + 1) * (shape.heads + shape.key_heads)
    return shape.norms * own + (of_heads if shape.head_norms else 0)


def attention_bytes(shape: Shape, batch: Batch) -> int:
    """Of attention between the projections."""
    e, a = batch.element, shape.attention
    if batch.eager or not shape.fused_attention:
        half, capped = e == 2, not shape.fused_attention
        return 3 * e * a + shape.heads * batch.longest * (4 + e * (half + capped))
    repeated = batch.padded and shape.key_heads > 1  # a single head is only viewed many times
    keys = a if repeated else shape.keys
    mask = e * batch.longest if batch.padded else 0
    return 2 * e * (a + keys) + 4 * shape.heads + mask


def adapter_bytes(shape: Shape, tuning: Tuning, batch: Batch) -> float:
    """What the method keeps beside what the frozen layer does, its norms left out."""
    if tuning.method is None:
        return 0.0
    if tuning.is_rosa:
        return roae_bytes(shape, tuning, batch)
    method = load_method(tuning.method)
    if method.peft_config == "LNTuningConfig":
        return 0.0
    inputs = adapted_inputs(shape, tuning)
    keys = tuning.keys
    if method.peft_config != "LoraConfig" or keys.get("use_dora"):
        return batch.adapters * KEPT.get(method.name, 1.0) * shared(inputs, shape, batch)
    return batch.adapters * (shared(inputs, shape, batch) + len(inputs) * keys.get("r", 8))


def roae_bytes(shape: Shape, tuning: Tuning, batch: Batch) -> int:
    """Of RoAE in one layer, per token."""
    low_rank = tuning.keys.get("projection", "low_rank") == "low_rank"
    rank = tuning.keys.get("r", 128) if low_rank else 0
    for_queries, for_keys = low_elements(shape, tuning)
    source = shape.hidden + rank + for_queries
    if shape.key_heads != shape.heads:
        source += for_keys
    return batch.adapters * source + batch.element * (for_queries + for_keys)


def low_elements(shape: Shape, tuning: Tuning) -> tuple[int, int]:
    """Low-frequency elements of a token's queries and of its keys; whole heads are rotated."""
    pairs = low_pair_count(shape.head_dim, shape.head_dim, tuning.keys.get("r_low", 0.25))
    return 2 * pairs * shape.heads, 2 * pairs * shape.key_heads


def adapted_inputs(shape: Shape, tuning: Tuning) -> dict[str, tuple[str, int]]:
    """The linear layers that a method adapts: which tensor each reads, of how many elements."""
    d, a, f = shape.hidden, shape.attention, shape.feed_forward
    inputs = {"q_proj": ("x", d), "k_proj": ("x", d), "v_proj": ("x", d), "o_proj": ("o", a)}
    inputs |= {"gate_proj": ("y", d), "up_proj": ("y", d), "down_proj": ("z", f)}
    targets = tuning.keys.get("target_modules") or ()
    if targets == "all-linear":
        return inputs
    return {name: value for name, value in inputs.items() if name in targets}


def shared(inputs: dict[str, tuple[str, int]], shape: Shape, batch: Batch) -> int:
    """Elements per token of those inputs that are kept for adapters alone."""
    if batch.adapters == batch.element == 4:
        once = dict(inputs.values())
        if shape.fused_attention and not batch.eager:
            once.pop("o", None)  # the kernel keeps its output already
        return sum(once.values())
    return sum(size for _, size in inputs.values())
