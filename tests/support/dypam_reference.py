"""DyPAM for any architecture, written from its equations: shares no code with the library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.architecture_reference import AnyReference, low_pairs
from tests.support.architectures import Architecture
from tests.support.reference import Weights


class DypamReference(AnyReference):
    """A plain model that computes what the adapted model must compute.

    The factor acts before ("pre") or after ("post") rotation, which must be the same.
    """

    def __init__(
        self, architecture: Architecture, model: nn.Module, state: Weights, alpha: float, stage: str
    ) -> None:
        super().__init__(architecture, model, {}, alpha, stage)
        for key, tensor in state.items():
            module, _, leaf = key.removeprefix("base_model.model.").partition(".dypam_")
            self.weights.setdefault(module, {})[leaf] = tensor

    def _modulate(self, state: Tensor, kind: str, pairing: str) -> Tensor:
        assert self._now is not None
        heads_first = self.architecture.axes == "heads_first"
        z = state if heads_first else state.transpose(1, 2)
        factor = factors(*self._now, self.architecture.key_heads, self.alpha)[kind]
        factor = factor.repeat_interleave(z.shape[1] // factor.shape[1], dim=1)  # Falcon's keys
        out = z.clone()
        for i, pair in enumerate(low_pairs(pairing, *self._rotated, factor.shape[-1])):
            for dim in pair:
                out[..., dim] = z[..., dim] * factor[..., i]
        return out if heads_first else out.transpose(1, 2)


def factors(
    weights: dict[str, Tensor], hidden: Tensor, key_heads: int, alpha: float, query_heads: int = 4
) -> dict[str, Tensor]:
    """s of queries and keys, (b, heads, l, pairs), of input (b, l, d)."""
    m = hidden @ (weights["A.weight"].T @ weights["B.weight"].T)
    by_head = m.chunk(query_heads, dim=-1)
    group = query_heads // key_heads
    shared = [sum(by_head[i * group : (i + 1) * group]) / group for i in range(key_heads)]
    result: dict[str, Any] = {}
    for side, features in (("q", by_head), ("k", shared)):
        heads = []
        for head, feature in enumerate(features):
            g = feature @ weights[f"E_{side}.weight"].T
            g = g + weights[f"head_{side}.bias"][head] + weights[f"E_{side}.bias"]
            heads.append(1 + alpha * (1 / (1 + torch.exp(-g)) - 0.5))
        result[side] = torch.stack(heads, dim=1)
    return result
