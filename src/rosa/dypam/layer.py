"""`DypamLayer`, the attention module with DyPAM.

H ── dypam_A ── dypam_B ── m ──┬────────── dypam_E_q ── + dypam_head_q ── g_q ── T_q
                               └─ (mean) ─ dypam_E_k ── + dypam_head_k ── g_k ── T_k
attention: q_proj ─ (q_norm) ─▶ modulate with T_q ─▶ rotation ─▶ ...
           k_proj ─ (k_norm) ─▶ modulate with T_k ─▶ rotation ─▶ cache ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rosa.attention.hooks import Modulation
from rosa.attention.layer import AttentionLayer
from rosa.dypam.config import DypamConfig
from rosa.ops import PairSignal, select_variant
from rosa.rope.cos_sin import check_cos_sin


class HeadBias(nn.Module):
    """Adds β_head, of each head and pair, to scores (b, l, heads, pairs)."""

    def __init__(self, heads: int, pairs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(heads, pairs))

    def forward(self, scores: Tensor) -> Tensor:
        return scores + self.bias.to(scores.dtype)


class DypamLayer(AttentionLayer):
    """An attention module with DyPAM, which scales every rotary pair of queries and of keys.

    With H (b, l, d) the input of the attention module, and n = ρ/2 rotary pairs per head:

        m = H·A·B                       (b, l, h_q, d_e)
        g = E·m + β_head + β_layer      (b, l, heads, n); E (n, d_e) is shared by the heads
        s = 1 + α·T, T = σ(g) - 1/2     (b, l, heads, n), within 1 ± α/2
        z ← s·z                         both dimensions of each pair, before rotation

    Queries and keys have their own E and β. A factor that both dimensions of a pair share commutes
    with the pair's rotation, so that before and after rotation are the same.

    Where the paper leaves a choice open:

    - with grouped queries, a key head's m is the mean of m over the query heads that attend to it;
    - β_head belongs to a head of one layer; β_layer is saved as the bias of E;
    - B and all β start at zero, so that g = 0 and s = 1 exactly, and A as LoRA's (Kaiming-uniform);
      E starts normal with variance 1/d_e. The first gradients go to B and to β.
    - Dimensions that do not rotate are not scaled: n counts the pairs that do.
    """

    method, prefix = "DyPAM", "dypam_"

    def update_layer(self, adapter_name: str, config: DypamConfig) -> None:
        layout, pairs = self.layout, self.layout.rotary_dim // 2
        features = config.feature_dim
        modules: dict[str, nn.Module] = {
            "A": nn.Linear(layout.hidden_size, config.r, bias=False),
            "B": nn.Linear(config.r, layout.query.heads * features, bias=False),
        }
        if config.init_weights:
            nn.init.zeros_(modules["B"].weight)  # type: ignore[arg-type]
        for side, point in (("q", layout.query), ("k", layout.key)):
            scores = modules[f"E_{side}"] = nn.Linear(features, pairs)
            nn.init.normal_(scores.weight, std=1 / math.sqrt(features))
            nn.init.zeros_(scores.bias)
            modules[f"head_{side}"] = HeadBias(point.heads, pairs)
        self._add_modules(adapter_name, modules)
        self._finish_adapter(adapter_name, config, range(pairs))

    def _modulations(
        self, name: str, base: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Modulation, ...]:
        check_cos_sin(self.layout, base, arguments)
        hidden_states = arguments["hidden_states"]
        for_queries, for_keys = (
            PairSignal(pairs, tanh.unsqueeze(-2).expand(*tanh.shape[:-1], 2, -1), False)
            for pairs, tanh in zip(
                self.low_pairs[name], self._tanh(name, hidden_states), strict=True
            )
        )
        variant = select_variant(hidden_states)
        return self._by_output((for_queries, for_keys), self.alpha[name] / 2, None, variant)

    def signals(self, adapter_name: str, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """T (b, l, heads, 2n) of queries and of keys, for input (b, l, d): for each dimension."""
        queries, keys = (torch.cat([t, t], -1) / 2 for t in self._tanh(adapter_name, hidden_states))
        return queries, keys

    def _tanh(self, adapter_name: str, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """tanh(g/2) = 2·T (b, l, heads, n), the one tensor that the backward pass needs of g."""
        names = [f"{self.prefix}{name}" for name in ("A", "B")]
        down, up = self._adapter_modules(adapter_name, names)
        m = up(down(self._in_adapter_dtype(adapter_name, names, hidden_states)))
        queries, keys = self.layout.query.heads, self.layout.key.heads
        m = m.unflatten(-1, (queries, -1))
        of_keys = m if keys == queries else m.unflatten(-2, (keys, -1)).mean(-2)
        return (
            torch.tanh(self._scores(adapter_name, "q", m) / 2),
            torch.tanh(self._scores(adapter_name, "k", of_keys) / 2),
        )

    def _scores(self, adapter_name: str, side: str, m: Tensor) -> Tensor:
        """g (b, l, heads, n) of features (b, l, heads, d_e)."""
        names = [f"{self.prefix}E_{side}", f"{self.prefix}head_{side}"]
        scores, head_bias = self._adapter_modules(adapter_name, names)
        return head_bias(scores(m))
