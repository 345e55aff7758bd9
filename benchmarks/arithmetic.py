"""What an adapter costs in operations of matrix products, as a ratio to the frozen model's.

Per token, with F = 2·r·(d + Q) for W_proj and G = 2·r·(Q + K) for W_GQA (Q and K the low-frequency
elements of queries and keys; `benchmarks.roae_costs`), a layer of RoSA costs

    forward         F + G
    to the inputs   F + G
    of the weights  F + G + 2·r·Q, as what its second factor reads is computed again; nothing in a
                    layer that does not train

and LoRA three times its forward products. The frozen model's step is a forward pass and one to its
inputs, of which attention (two products forward) takes five. The ratio would be that of times if
nothing else took any and all products ran equally fast. Decoding a token reads each weight once for
two operations, so that it is the ratio of bytes as well.
"""

from __future__ import annotations

from benchmarks.contenders import CONTENDERS, LORA, SIZES
from rosa.budget.activation_memory import AdapterSpec, DecoderShape, low_frequency_width
from rosa.budget.memory import AdaptedModel
from rosa.budget.time import forward_flops

RANK = CONTENDERS["rosa"].config().r
BACKWARDS = 5 / 2  # of attention's products, as FlashAttention computes its scores again


class Arithmetic:
    """Ratios to the frozen model, of a size (a name of `SIZES`) in rows of `length` tokens."""

    def __init__(self, size: str, length: int) -> None:
        shape = self.shape = DecoderShape.of(SIZES[size].config())
        outside = 2 * shape.vocab * shape.hidden
        model = AdaptedModel(shape, shape.linear_weights + outside, 0)
        self._head = 2 * shape.vocab * shape.hidden
        self._linear = forward_flops(model, 0)
        self._attention = forward_flops(model, length) - self._linear  # of a row, on average
        queries, keys = low_frequency_width(shape, AdapterSpec("rosa"))
        self._project = 2 * RANK * (shape.hidden + queries) * shape.layers
        grouped = shape.heads != shape.kv_heads
        self._to_keys = 2 * RANK * (queries + keys) * shape.layers * grouped
        self._again = 2 * RANK * queries * shape.layers * grouped

    @property
    def frozen(self) -> float:
        """Operations of a training step per token."""
        return 2 * self._linear + (1 + BACKWARDS) * self._attention

    def rosa(self, trained: float = 1.0) -> float:
        """Those of the adapter, of whose layers a share is trained and all get a gradient."""
        once = self._project + self._to_keys
        return 2 * once + trained * (once + self._again)

    def lora(self) -> float:
        """Those of LoRA on all linears."""
        s = self.shape
        attention = 4 * s.hidden + 2 * (s.query_width + s.key_width)
        return 3 * 2 * LORA["r"] * (attention + 3 * (s.hidden + s.intermediate)) * s.layers

    def rosa_step(self, trained: float = 1.0) -> float:
        """A training step with RoSA; with DLS from the first layer on, where only some train."""
        return 1 + self.rosa(trained) / self.frozen

    def lora_by_rosa(self) -> float:
        """A training step with LoRA by one with RoSA."""
        return (self.frozen + self.lora()) / (self.frozen + self.rosa())

    def prefill(self) -> float:
        """Reading a prompt, of which the last token alone goes through the head."""
        forward = self._linear - self._head + self._attention
        return 1 + (self._project + self._to_keys) / forward

    def decode(self) -> float:
        """A token after so many; it attends to twice as many as one of the row does on average."""
        return 1 + (self._project + self._to_keys) / (self._linear + 2 * self._attention)
