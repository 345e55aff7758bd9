"""What RoAE costs per token, by formula: operations, and bytes to and from memory.

With d the width, r the rank, Q = h·d_low and K = k·d_low the low-frequency elements of a token's
queries and keys, per token and layer, whatever the length of the sequence:

    forward   2·r·(d + Q) for P, 2·r·(Q + K) for S_k (none where k = h), 8·(Q + K) to modulate
    backward  twice the matrix products, for weights and inputs; 2·r·Q of S_k's, as what its second
              factor reads is computed again; 16·(Q + K)

Bytes: each operation reads its inputs and writes its outputs once, e bytes each (weights are left
out, which all tokens of a batch share): forward e·(d + 4·r + 5·Q + 5·K), backward twice that.
The floor is the longer of operations by the device's peak and bytes by its bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from rosa.budget.activation_memory import AdapterSpec, DecoderShape, low_frequency_width
from rosa.budget.time import Device

MODULATE = 8  # operations per element: turn, multiply, turn back, add


@dataclass(frozen=True)
class RoaeCost:
    """Of one token in all layers: operations and bytes, forward and backward."""

    forward_flops: float
    backward_flops: float
    forward_bytes: float
    backward_bytes: float

    def seconds(self, device: Device) -> float:
        """The floor of a training step's token, at the device's peak."""
        return sum(
            max(flops / device.flops, moved / device.bandwidth)
            for flops, moved in (
                (self.forward_flops, self.forward_bytes),
                (self.backward_flops, self.backward_bytes),
            )
        )


def roae_cost(shape: DecoderShape, adapter: AdapterSpec, element: int = 2) -> RoaeCost:
    """The cost of one token; `adapter` is RoSA's with the low-rank projection."""
    rank = adapter.arguments.get("r", 128)
    queries, keys = low_frequency_width(shape, adapter)
    low = queries + keys
    grouped = shape.kv_heads != shape.heads
    project = 2 * rank * (shape.hidden + queries)
    to_keys = 2 * rank * low if grouped else 0
    again = 2 * rank * queries if grouped else 0
    moved = element * (shape.hidden + 4 * rank + 5 * low)
    layers = shape.layers
    return RoaeCost(
        layers * (project + to_keys + MODULATE * low),
        layers * (2 * (project + to_keys) + again + 2 * MODULATE * low),
        layers * moved,
        layers * 2 * moved,
    )
