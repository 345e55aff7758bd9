"""`RosaLayer` wraps one attention module and modulates its queries and keys.

    H ──┬── rosa_A ── rosa_B ── P ── SiLU ──┬── S_q ─────────────────────────┐
        │   (or another projection)         └── rosa_gqa_A ── rosa_gqa_B ── S_k (GQA only)
        └── attention: q_proj ─ (q_norm) ─▶ modulate with S_q ─▶ rotation ─▶ ...
                       k_proj ─ (k_norm) ─▶ modulate with S_k ─▶ rotation ─▶ cache ...

The attention's own forward runs unchanged: the layer computes the signal from the module's input
and hands it (`set_modulation`) to the forward hooks of the last modules before rotation. Nothing
outlives the call, so gradient checkpointing and exceptions leave no trace; the hook is a plain
function that reads from its own module, so copies, pickles and replicas of a model are independent.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import silu

from rosa.errors import RosaError
from rosa.ops import (
    PairRotation,
    PairSignal,
    Variant,
    linear_of_silu,
    pair_rotation,
    select_variant,
)
from rosa.roae.config import RosaConfig
from rosa.roae.folding import FoldedLinear, fold
from rosa.roae.heads import LowPairs
from rosa.roae.hooks import Modulation, clear_modulation, hook, set_modulation, unhook
from rosa.roae.norms import HALF, NormWrapper
from rosa.roae.peft_compat import KeepRequiresGradMixin, check_single_active
from rosa.roae.projection import PREFIX, Modules, build_projection, low_rank_gqa
from rosa.rope import RopeLayout, low_pair_count
from rosa.rope.cos_sin import CosSin, check_cos_sin, cos_sin_of

NO_MERGE = (
    "a RoSA adapter depends on its input and cannot be merged into the weights; "
    "use unload() to get the base model back, or keep the adapter attached"
)
NO_COS_SIN = (
    "RoSA cannot read this model's cos and sin and can only adapt it before rotation: set "
    "rope_stage='pre'"
)


def _dtype_of(modules: Sequence[nn.Module]) -> torch.dtype:
    """Of the first weight; looked up by its usual name, since decoding asks for each token."""
    weight = getattr(modules[0], "weight", None)
    if not isinstance(weight, Tensor):
        weight = next(weight for module in modules for weight in module.parameters())
    return weight.dtype


class RosaLayer(KeepRequiresGradMixin, nn.Module, BaseTunerLayer):
    """An attention module with RoAE; each adapter has its own weights, one is active at a time.

    The signal, with H (b, l, d) the input of the attention module (Eqs. 2 and 3):

        P = W_proj(H)         (b, l, h_q·d_low): `rosa.roae.projection`, low rank by default
        S_q = SiLU(P)         (b, l, h_q, d_low)
        S_k = S_q·W_GQA       (b, l, h_kv, d_low), W_GQA of rank r; S_k = S_q where h_kv = h_q

    d_low holds the real half, then the imaginary half. W_proj and W_GQA are one or more modules;
    each is an entry, by adapter, of a `ModuleDict`: `rosa_A`, `rosa_B`, `rosa_gqa_A`, `rosa_gqa_B`
    for the low-rank ones.
    """

    # Of the adapters that there are; their projections add their own.
    adapter_layer_names: tuple[str, ...] = ()
    other_param_names = ("projection", "gqa", "alpha", "rope_stage", "low_pairs")

    def __init__(self, base_layer: nn.Module, layout: RopeLayout) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = layout
        self.projection: dict[str, tuple[str, ...]] = {}  # names of W_proj's modules, in order
        self.gqa: dict[str, tuple[str, ...]] = {}  # of W_GQA's; none where h_kv = h_q
        self.alpha: dict[str, float] = {}
        self.rope_stage: dict[str, str] = {}
        self.low_pairs: dict[str, tuple[LowPairs, LowPairs]] = {}  # of queries, of keys
        # By adapter and names of modules, while prepared for inference.
        self._folded: dict[tuple[str, tuple[str, ...]], FoldedLinear] = {}
        self.norms: list[NormWrapper] = []  # of the same decoder layer; a list owns no modules
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        parameters = inspect.signature(type(base_layer).forward).parameters
        self._parameters_of_forward = list(parameters)[1:]  # without self
        # Names of the modules whose outputs hold the queries and the keys: one or two.
        self._hooked = tuple(dict.fromkeys((layout.query.module, layout.key.module)))
        self._hooked_modules(base_layer)

    def update_layer(self, adapter_name: str, config: RosaConfig) -> None:
        """Adds an adapter's weights. Raises RosaError where r_low is too small for the head."""
        layout = self.layout
        if layout.cos_sin is None and config.rope_stage == "post":
            raise RosaError(NO_COS_SIN)
        pairs = low_pair_count(layout.head_dim, layout.rotary_dim, config.r_low)
        for_queries, for_keys = (2 * pairs * point.heads for point in (layout.query, layout.key))
        modules = build_projection(layout.hidden_size, for_queries, config)
        self.projection[adapter_name] = self._add_modules(adapter_name, modules)
        modules = {}
        if layout.query.heads != layout.key.heads:
            modules = low_rank_gqa(for_queries, for_keys, config.r)
        self.gqa[adapter_name] = self._add_modules(adapter_name, modules)
        self.alpha[adapter_name] = config.alpha
        self.rope_stage[adapter_name] = config.rope_stage
        slices = layout.last_pairs(pairs)
        self.low_pairs[adapter_name] = (
            LowPairs(layout.query, layout.head_dim, slices),
            LowPairs(layout.key, layout.head_dim, slices),
        )
        self.cast(adapter_name, upcast=False)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _add_modules(self, adapter_name: str, modules: Modules) -> tuple[str, ...]:
        """Adds an adapter's modules, each under its prefixed name; returns those names."""
        modules = {f"{PREFIX}{name}": module for name, module in modules.items()}
        for name, module in modules.items():
            if name not in self.adapter_layer_names:
                self.add_module(name, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, name)
            getattr(self, name)[adapter_name] = module
        return tuple(modules)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's: activates one adapter (or none), with its norms.

        Names of other methods' adapters, in other modules of the same model, may be among them.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        check_single_active([name for name in names if name in self.projection])
        super().set_adapter(names, inference_mode=inference_mode)
        for norm in () if self._enabling else self.norms:
            norm.set_adapter_of_layer(names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, with the norms: Transformers' own `enable_adapters` passes those over."""
        super().enable_adapters(enabled)
        for norm in self.norms:
            norm.enable_adapters(enabled)

    def requires_grad_(self, requires_grad: bool = True) -> RosaLayer:
        """PyTorch's, with the norms: Transformers freezes adapters loaded for inference with it."""
        if not requires_grad:
            for norm in self.norms:
                norm.requires_grad_(False)
        return super().requires_grad_(requires_grad)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention module's own forward, with its queries and keys modulated."""
        base: Any = self._modules["base_layer"]
        name = self._active_rosa_adapter()
        if name is None:
            return base(*args, **kwargs)
        arguments = kwargs
        if args:
            arguments = dict(zip(self._parameters_of_forward, args, strict=False)) | kwargs
        hooked = self._hooked_modules(base)
        try:
            set_modulation(hooked, self._modulations(name, base, arguments))
            return base(*args, **kwargs)
        finally:
            clear_modulation(hooked)

    def _active_rosa_adapter(self) -> str | None:
        """The adapter that modulates, if any."""
        if not self._disable_adapters:
            for name in self.active_adapters:
                if name in self.projection:
                    return name
        return None

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
        rotation: CosSin | PairRotation | None = cos_sin
        if cos_sin is not None and variant != "reference":
            rotation = pair_rotation(*cos_sin, for_queries.pairs, alpha, hidden_states.dtype)
        s_q, s_k = self._sources(name, hidden_states, variant)
        signals = PairSignal(for_queries, *s_q), PairSignal(for_keys, *s_k)
        if len(self._hooked) == 1:
            return (Modulation(signals, alpha, rotation, variant),)
        return tuple(Modulation((signal,), alpha, rotation, variant) for signal in signals)

    def _sources(
        self, name: str, hidden_states: Tensor, variant: Variant
    ) -> tuple[tuple[Tensor, bool], tuple[Tensor, bool]]:
        """The sources of S_q and S_k: S and False, or P and True where S = SiLU(P).

        For a backward pass that is P for both where possible, so that S_q is not saved too.
        """
        p = self.pre_activation(name, hidden_states)
        if variant == "reference" or not p.requires_grad:
            for_queries = silu(p)
            return (for_queries, False), (self.key_signal(name, for_queries), False)
        gqa = self._adapter_modules(name, self.gqa[name])
        return (p, True), (linear_of_silu(gqa, p), False) if gqa else (p, True)

    def _hooked_modules(self, base: nn.Module) -> tuple[nn.Module, ...]:
        """The modules whose outputs hold the queries and the keys, or the one, with the hook.

        They get it when they are first seen: another method's adapter may wrap one at any time.
        """
        # As get_submodule, but faster: decoding asks for each token.
        hooked = tuple(base._modules.get(name) or base.get_submodule(name) for name in self._hooked)
        for module in hooked:
            hook(module)
        return hooked

    def _adapter_modules(self, adapter_name: str, names: tuple[str, ...]) -> list[nn.Module]:
        return [self._modules[name]._modules[adapter_name] for name in names]  # type: ignore

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
        for_queries = silu(self.pre_activation(adapter_name, hidden_states))
        for_keys = self.key_signal(adapter_name, for_queries)
        return (
            for_queries.unflatten(-1, (self.layout.query.heads, -1)),
            for_keys.unflatten(-1, (self.layout.key.heads, -1)),
        )

    def pre_activation(self, adapter_name: str, hidden_states: Tensor) -> Tensor:
        """P (b, l, h_q·d_low) of input (b, l, d), of which S_q = SiLU(P).

        Computed in the dtype of the adapter's weights, or autocast's where it is on.
        """
        names, p = self.projection[adapter_name], hidden_states
        dtype = _dtype_of(self._adapter_modules(adapter_name, names))
        if p.dtype != dtype:
            p = self._cast_input_dtype(p, dtype)
        return self._through(adapter_name, names, p)

    def key_signal(self, adapter_name: str, for_queries: Tensor) -> Tensor:
        """S_k (b, l, h_kv·d_low) of S_q (b, l, h_q·d_low); the same tensor where h_kv = h_q."""
        return self._through(adapter_name, self.gqa[adapter_name], for_queries)

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

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise RosaError(NO_MERGE)

    def unmerge(self) -> None:
        """Nothing to do: a RoSA adapter is never merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The attention module as it was before it was wrapped (PEFT calls this to unload)."""
        if merge:
            raise RosaError(NO_MERGE)
        for module in self.base_layer.modules():
            unhook(module)
        return self.base_layer

    def cast(self, adapter_name: str, *, upcast: bool) -> None:
        """Casts an adapter's half-precision weights to float32, or all as the attention module's.

        The latter moves them to its device too.
        """
        if not upcast:
            super()._move_adapter_to_device_of_base_layer(adapter_name)
            return
        for parameter in self.adapter_parameters(adapter_name):
            if parameter.dtype in HALF:
                parameter.data = parameter.data.float()  # the one that an optimizer holds

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """PEFT calls this on weights that it has just loaded: moves them, keeping their dtype."""
        place = device or self._get_base_layer_device_and_dtype(self.base_layer)[0]
        for name in self.adapter_layer_names:
            weights = getattr(self, name)
            if adapter_name in weights and not any(
                p.is_meta for p in weights[adapter_name].parameters()
            ):
                weights[adapter_name].to(place)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> Any:
        """PEFT places adapter weights by `base_layer.weight`; an attention module has none."""
        weighted = (child for child in base_layer.modules() if hasattr(child, "weight"))
        return super()._get_base_layer_device_and_dtype(next(weighted))

    def __getattr__(self, name: str) -> Any:
        """What the wrapper lacks comes from the attention module: `layer.self_attn.q_proj`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not yet constructed, e.g. while unpickling
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return "rosa." + super().__repr__()
