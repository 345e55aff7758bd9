"""`RosaLayer`, the attention module with RoAE.

H ──┬── rosa_A ── rosa_B ── P ── SiLU ──┬── S_q ─────────────────────────┐
    │   (or another projection)         └── rosa_gqa_A ── rosa_gqa_B ── S_k (GQA only)
    └── attention: q_proj ─ (q_norm) ─▶ modulate with S_q ─▶ rotation ─▶ ...
                   k_proj ─ (k_norm) ─▶ modulate with S_k ─▶ rotation ─▶ cache ...
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rosa.attention.hooks import Modulation
from rosa.attention.layer import AttentionLayer
from rosa.errors import RosaError
from rosa.ops import (
    PairRotation,
    PairSignal,
    Variant,
    linear_of_silu,
    pair_rotation,
    select_variant,
    signals_of,
)
from rosa.roae.config import RosaConfig
from rosa.roae.folding import FoldedLinear, fold
from rosa.roae.norms import NormWrapper
from rosa.roae.pairs import adapted_pairs
from rosa.roae.projection import PREFIX, build_projection, low_rank_gqa
from rosa.rope import RopeLayout
from rosa.rope.cos_sin import CosSin, check_cos_sin, cos_sin_of

NO_COS_SIN = (
    "RoSA cannot read this model's cos and sin and can only adapt it before rotation: set "
    "rope_stage='pre'"
)


class RosaLayer(AttentionLayer):
    """An attention module with RoAE, and the trained norms of its decoder layer.

    The signal, with H (b, l, d) the input of the attention module (Eqs. 2 and 3):

        P = W_proj(H)         (b, l, h_q·d_low): `rosa.roae.projection`, low rank by default
        S_q = SiLU(P)         (b, l, h_q, d_low)
        S_k = S_q·W_GQA       (b, l, h_kv, d_low), W_GQA of rank r; S_k = S_q where h_kv = h_q

    With `bound` b both are b·tanh(S/b) instead, within (-b, b) and S to first order.

    d_low holds the real half, then the imaginary half. W_proj and W_GQA are one or more modules;
    each is an entry, by adapter, of a `ModuleDict`: `rosa_A`, `rosa_B`, `rosa_gqa_A`, `rosa_gqa_B`
    for the low-rank ones.
    """

    method, prefix = "RoSA", PREFIX
    other_param_names = ("alpha", "low_pairs", "projection", "gqa", "bound", "rope_stage")

    def __init__(self, base_layer: nn.Module, layout: RopeLayout) -> None:
        super().__init__(base_layer, layout)
        self.projection: dict[str, tuple[str, ...]] = {}  # names of W_proj's modules, in order
        self.gqa: dict[str, tuple[str, ...]] = {}  # of W_GQA's; none where h_kv = h_q
        self.bound: dict[str, float | None] = {}
        self.rope_stage: dict[str, str] = {}
        # By adapter and names of modules, while prepared for inference.
        self._folded: dict[tuple[str, tuple[str, ...]], FoldedLinear] = {}
        self.norms: list[NormWrapper] = []  # of the same decoder layer; a list owns no modules

    def update_layer(self, adapter_name: str, config: RosaConfig) -> None:
        """Adds an adapter's weights. Raises RosaError where r_low is too small for the head."""
        layout = self.layout
        if layout.cos_sin is None and config.rope_stage == "post":
            raise RosaError(NO_COS_SIN)
        attention: Any = self.base_layer
        pairs = adapted_pairs(layout, config, attention.layer_idx)
        for_queries, for_keys = (
            2 * len(pairs) * point.heads for point in (layout.query, layout.key)
        )
        modules = build_projection(layout.hidden_size, for_queries, config)
        self.projection[adapter_name] = self._add_modules(adapter_name, modules)
        modules = {}
        if layout.query.heads != layout.key.heads:
            modules = low_rank_gqa(for_queries, for_keys, config.r)
        self.gqa[adapter_name] = self._add_modules(adapter_name, modules)
        self.bound[adapter_name] = config.bound
        self.rope_stage[adapter_name] = config.rope_stage
        self._finish_adapter(adapter_name, config, pairs)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's: activates one adapter (or none), with its norms."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for norm in () if self._enabling else self.norms:
            norm.set_adapter_of_layer(self.active_adapters, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, with the norms: Transformers' own `enable_adapters` passes those over."""
        super().enable_adapters(enabled)
        for norm in self.norms:
            norm.enable_adapters_of_layer(enabled)

    def requires_grad_(self, requires_grad: bool = True) -> RosaLayer:
        """PyTorch's, with the norms: Transformers freezes adapters loaded for inference with it."""
        if not requires_grad:
            for norm in self.norms:
                norm.requires_grad_(False)
        return super().requires_grad_(requires_grad)

    def _modulations(
        self, name: str, base: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Modulation, ...]:
        """What an adapter does to the output of each hooked module in a call."""
        layout, alpha = self.layout, self.alpha[name]
        for_queries, for_keys = self.low_pairs[name]
        hidden_states = arguments["hidden_states"]
        cos_sin: CosSin | None = None
        if self.rope_stage[name] == "post":
            cos_sin = cos_sin_of(layout, base, arguments)
        else:
            check_cos_sin(layout, base, arguments)
        variant = select_variant(hidden_states, *(cos_sin or ()))
        if not for_queries.strided:
            variant = "reference"
        rotation: CosSin | PairRotation | None = cos_sin
        if cos_sin is not None and variant != "reference":
            rotation = pair_rotation(*cos_sin, for_queries.pairs, alpha, hidden_states.dtype)
        s_q, s_k = self._sources(name, hidden_states, variant)
        signals = PairSignal(for_queries, *s_q), PairSignal(for_keys, *s_k)
        return self._by_output(signals, alpha, rotation, variant)

    def _sources(
        self, name: str, hidden_states: Tensor, variant: Variant
    ) -> tuple[tuple[Tensor, bool], tuple[Tensor, bool]]:
        """The sources of S_q and S_k: S and False, or P and True where S = SiLU(P).

        For a backward pass that is P for both where possible, so that S_q is not saved too. A
        bound is applied by plain PyTorch for every variant.
        """
        p = self.pre_activation(name, hidden_states)
        if variant == "reference" or not p.requires_grad or self.bound[name] is not None:
            for_queries, for_keys = self._signals_of(name, p)
            return (for_queries, False), (for_keys, False)
        gqa = self._adapter_modules(name, self.gqa[name])
        return (p, True), (linear_of_silu(gqa, p), False) if gqa else (p, True)

    def _through(self, adapter_name: str, names: tuple[str, ...], x: Tensor) -> Tensor:
        """x through an adapter's modules one after another, or through their valid product."""
        modules = self._adapter_modules(adapter_name, names)
        folded = self._folded.get((adapter_name, names))
        if folded and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
            output = folded(modules, x)
            if output is not None:
                return output
        for module in modules:
            x = module(x)
        return x

    def signals(self, adapter_name: str, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """S_q (b, l, h_q, d_low) and S_k (b, l, h_kv, d_low) of input (b, l, d)."""
        p = self.pre_activation(adapter_name, hidden_states)
        for_queries, for_keys = self._signals_of(adapter_name, p)
        return (
            for_queries.unflatten(-1, (self.layout.query.heads, -1)),
            for_keys.unflatten(-1, (self.layout.key.heads, -1)),
        )

    def pre_activation(self, adapter_name: str, hidden_states: Tensor) -> Tensor:
        """P (b, l, h_q·d_low) of input (b, l, d), of which S_q = SiLU(P).

        Computed in the dtype of the adapter's weights, or autocast's where it is on.
        """
        names = self.projection[adapter_name]
        hidden_states = self._in_adapter_dtype(adapter_name, names, hidden_states)
        return self._through(adapter_name, names, hidden_states)

    def _signals_of(self, adapter_name: str, p: Tensor) -> tuple[Tensor, Tensor]:
        """S_q (b, l, h_q·d_low) and S_k (b, l, h_kv·d_low) of P; one tensor where h_kv = h_q."""
        names = self.gqa[adapter_name]
        gqa = partial(self._through, adapter_name, names) if names else None
        return signals_of(p, gqa, self.bound[adapter_name])

    def prepare_for_inference(self) -> None:
        """Folds W_proj and W_GQA of each adapter where that is cheaper; `train()` undoes it."""
        for by_adapter in (self.projection, self.gqa):
            for adapter_name, names in by_adapter.items():
                folded = fold(self._adapter_modules(adapter_name, names))
                if folded is not None:
                    self._folded[adapter_name, names] = folded

    def train(self, mode: bool = True) -> RosaLayer:
        """PyTorch's; training ends what `prepare_for_inference` began."""
        if mode:
            self._folded.clear()
        return super().train(mode)
