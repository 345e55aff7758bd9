"""`RosaLayer` wraps one attention module and modulates its queries and keys.

    H ──┬── rosa_A ── rosa_B ── P ── SiLU ──┬── S_q ─────────────────────────┐
        │   (or another projection)         └── rosa_gqa_A ── rosa_gqa_B ── S_k (GQA only)
        └── attention: q_proj ─ (q_norm) ─▶ modulate with S_q ─▶ rotation ─▶ ...
                       k_proj ─ (k_norm) ─▶ modulate with S_k ─▶ rotation ─▶ cache ...

The attention's own forward runs unchanged: the layer computes the signal from the module's input,
lays it on the last module before rotation of each (`hand_over`), and their forward hooks apply it.
Nothing outlives the call, so recomputation under gradient checkpointing and an exception in between
leave no trace; the hook is a plain function that reads from its own module, so copies, pickles and
replicas of a model stay independent.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.ops import Part, Turning, Variant, chosen, linear_of_silu, turning_of
from rosa.roae.checks import check_one_adapter
from rosa.roae.config import RosaConfig
from rosa.roae.folding import Folded, fold
from rosa.roae.hooks import forget, hand_over, handed_over, take_back
from rosa.roae.modulation import Modulation
from rosa.roae.norms import NormWrapper
from rosa.roae.projection import PREFIX, Stages, build_projection, low_rank_gqa
from rosa.roae.taps import LowPairs
from rosa.roae.trainability import KeepsTrainability
from rosa.rope import RopeLayout, low_pair_count
from rosa.rope.turns import Rotation, check_turns, turns_of

NO_MERGE = (
    "a RoSA adapter depends on its input and cannot be merged into the weights; "
    "use unload() to get the base model back, or keep the adapter attached"
)
NO_ANGLES = (
    "this model computes its rotary angles where RoSA cannot get them, so that it can only be "
    "adapted before rotation: set rope_stage='pre'"
)


def _modulate_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook of the last module before rotation."""
    for modulation in handed_over(module):
        output = modulation(module, inputs, output)
    return output


def _dtype_of(stages: list[nn.Module]) -> torch.dtype:
    """Of the first weight; by its usual name if it can be, since decoding asks for each token."""
    weight = stages[0]._parameters.get("weight")
    if weight is None:  # a replica's weights are no parameters, a quantised one may be a buffer
        weight = getattr(stages[0], "weight", None)
    if not isinstance(weight, Tensor):
        weight = next(weight for stage in stages for weight in stage.parameters())
    return weight.dtype


def _through(modules: list[nn.Module], folded: Folded | None, x: Tensor) -> Tensor:
    """x after the modules, one after another, or after their product where there is a valid one."""
    if folded and not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        mapped = folded(modules, x)
        if mapped is not None:
            return mapped
    for module in modules:
        x = module(x)
    return x


def _submodule(module: nn.Module, name: str) -> nn.Module:
    """`module.get_submodule(name)`, quickly: decoding asks for several at each token."""
    return module._modules.get(name) or module.get_submodule(name)


class RosaLayer(KeepsTrainability, nn.Module, BaseTunerLayer):
    """An attention module with RoAE; each adapter has its own weights, one is active at a time.

    The signal, with H (b, l, d) the input of the attention module (Eqs. 2 and 3):

        P = W_proj(H)         (b, l, h_q·d_low): `rosa.roae.projection`, low rank unless told
        S_q = SiLU(P)         (b, l, h_q, d_low)
        S_k = S_q·W_GQA       (b, l, h_kv, d_low), W_GQA of rank r; S_k = S_q where h_kv = h_q

    d_low holds the real half, then the imaginary half. Each stage of the two maps is a
    `ModuleDict` with one module for each adapter: `rosa_A`, `rosa_B`, `rosa_gqa_A`, `rosa_gqa_B`
    for the low-rank ones.
    """

    # Of the adapters that there are; their projections add their own.
    adapter_layer_names: tuple[str, ...] = ()
    other_param_names = ("stages", "stages_for_keys", "alpha", "rope_stage", "low_pairs")

    def __init__(self, base_layer: nn.Module, layout: RopeLayout) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = layout
        self.stages: dict[str, tuple[str, ...]] = {}  # names of modules, in the order of W_proj
        self.stages_for_keys: dict[str, tuple[str, ...]] = {}  # of W_GQA; none where h_kv = h_q
        self.alpha: dict[str, float] = {}
        self.rope_stage: dict[str, str] = {}
        self.low_pairs: dict[str, tuple[LowPairs, LowPairs]] = {}  # of queries, of keys
        # By adapter and stages, while prepared for inference.
        self._folded: dict[tuple[str, tuple[str, ...]], Folded] = {}
        self.norms: list[NormWrapper] = []  # of the same decoder layer; a list owns no modules
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        parameters = inspect.signature(type(base_layer).forward).parameters
        self._parameters_of_forward = list(parameters)[1:]  # without self
        # Names of the modules whose outputs hold the queries and the keys: one or two.
        self._tapped = tuple(dict.fromkeys((layout.query.module, layout.key.module)))
        self._tap(base_layer)

    def update_layer(self, adapter_name: str, config: RosaConfig) -> None:
        """Adds an adapter's weights. Raises RosaError where r_low is too small for the head."""
        layout = self.layout
        if layout.turns is None and config.rope_stage == "post":
            raise RosaError(NO_ANGLES)
        pairs = low_pair_count(layout.head_dim, layout.rotary_dim, config.r_low)
        for_queries, for_keys = (2 * pairs * tap.heads for tap in (layout.query, layout.key))
        weights = build_projection(layout.hidden_size, for_queries, config)
        self.stages[adapter_name] = self._keep(adapter_name, weights)
        weights = {}
        if layout.query.heads != layout.key.heads:
            weights = low_rank_gqa(for_queries, for_keys, config.r)
        self.stages_for_keys[adapter_name] = self._keep(adapter_name, weights)
        self.alpha[adapter_name] = config.alpha
        self.rope_stage[adapter_name] = config.rope_stage
        slices = layout.last_pairs(pairs)
        self.low_pairs[adapter_name] = (
            LowPairs(layout.query, layout.head_dim, slices),
            LowPairs(layout.key, layout.head_dim, slices),
        )
        self.cast_as_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _keep(self, adapter_name: str, weights: Stages) -> tuple[str, ...]:
        """Takes an adapter's modules in, each under its prefixed name; returns those names."""
        names = tuple(f"{PREFIX}{name}" for name in weights)
        for name, module in zip(names, weights.values(), strict=True):
            if name not in self.adapter_layer_names:
                self.add_module(name, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, name)
            getattr(self, name)[adapter_name] = module
        return names

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's: activates one adapter (or none), with its norms.

        Names of other methods' adapters, in other modules of the same model, may be among them.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        check_one_adapter([name for name in names if name in self.stages])
        super().set_adapter(names, inference_mode=inference_mode)
        for norm in () if self._enabling else self.norms:
            norm.follow(names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """PEFT's, with the norms: Transformers' own `enable_adapters` passes those over."""
        super().enable_adapters(enabled)
        for norm in self.norms:
            norm.enable_adapters(enabled)

    def requires_grad_(self, requires_grad: bool = True) -> RosaLayer:
        """PyTorch's, with the norms: Transformers freezes so what it has loaded for inference."""
        if not requires_grad:
            for norm in self.norms:
                norm.requires_grad_(False)
        return super().requires_grad_(requires_grad)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention's own forward, with its queries and keys modulated on the way."""
        base: Any = self._modules["base_layer"]
        name = self._in_effect()
        if name is None:
            return base(*args, **kwargs)
        arguments = kwargs
        if args:
            arguments = dict(zip(self._parameters_of_forward, args, strict=False)) | kwargs
        tapped = self._tap(base)
        try:
            hand_over(tapped, self._modulations(name, base, arguments))
            return base(*args, **kwargs)
        finally:
            take_back(tapped)

    def _in_effect(self) -> str | None:
        """The adapter that modulates, if any."""
        if not self._disable_adapters:
            for name in self.active_adapters:
                if name in self.stages:
                    return name
        return None

    def _modulations(
        self, name: str, base: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Modulation, ...]:
        """What an adapter does to the output of each tapped module in a call."""
        layout, alpha = self.layout, self.alpha[name]
        for_queries, for_keys = self.low_pairs[name]
        hidden_states = arguments["hidden_states"]
        given: Rotation | None = None
        if self.rope_stage[name] == "post":
            given = turns_of(layout, base, arguments)
        else:
            check_turns(layout, base, arguments)
        variant = chosen(hidden_states, *(given or ()))
        rotation: Rotation | Turning | None = given
        if given is not None and variant != "reference":
            rotation = turning_of(*given, for_queries.pairs, alpha, hidden_states.dtype)
        s_q, s_k = self._sources(name, hidden_states, variant)
        parts = Part(for_queries, *s_q), Part(for_keys, *s_k)
        if len(self._tapped) == 1:
            return (Modulation(parts, alpha, rotation, variant),)
        return tuple(Modulation((part,), alpha, rotation, variant) for part in parts)

    def _sources(
        self, name: str, hidden_states: Tensor, variant: Variant
    ) -> tuple[tuple[Tensor, bool], tuple[Tensor, bool]]:
        """What S_q and S_k are made of: S and False, or P and True where S = SiLU(P).

        For a backward pass that is P for both, as far as possible: S_q is not kept beside it.
        """
        p = self.pre_activation(name, hidden_states)
        if variant == "reference" or not p.requires_grad:
            for_queries = nn.functional.silu(p)
            return (for_queries, False), (self.key_signal(name, for_queries), False)
        for_keys = self._of_adapter(name, self.stages_for_keys[name])
        if not for_keys:
            return (p, True), (p, True)
        return (p, True), (linear_of_silu(for_keys, p), False)

    def _tap(self, base: nn.Module) -> tuple[nn.Module, ...]:
        """The modules whose outputs hold the queries and the keys, or the one, with a hook.

        They get theirs when they are first seen: another adapter may wrap one at any time.
        """
        tapped = tuple(_submodule(base, name) for name in self._tapped)
        for module in tapped:
            if _modulate_output not in module._forward_hooks.values():
                module.register_forward_hook(_modulate_output)
        return tapped

    def _of_adapter(self, name: str, stages: tuple[str, ...]) -> list[nn.Module]:
        """An adapter's modules of these stages."""
        return [self._modules[stage]._modules[name] for stage in stages]  # type: ignore

    def signals(self, adapter_name: str, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """S_q (b, l, h_q, d_low) and S_k (b, l, h_kv, d_low) of input (b, l, d)."""
        for_queries = nn.functional.silu(self.pre_activation(adapter_name, hidden_states))
        for_keys = self.key_signal(adapter_name, for_queries)
        return (
            for_queries.unflatten(-1, (self.layout.query.heads, -1)),
            for_keys.unflatten(-1, (self.layout.key.heads, -1)),
        )

    def pre_activation(self, adapter_name: str, hidden_states: Tensor) -> Tensor:
        """P (b, l, h_q·d_low) of input (b, l, d), of which S_q = SiLU(P).

        Computed in the dtype of the adapter's weights (autocast, where it is on, decides instead).
        """
        stages = self.stages[adapter_name]
        modules = self._of_adapter(adapter_name, stages)
        p, dtype = hidden_states, _dtype_of(modules)
        if p.dtype != dtype:
            p = self._cast_input_dtype(p, dtype)
        return _through(modules, self._folded.get((adapter_name, stages)), p)

    def key_signal(self, adapter_name: str, for_queries: Tensor) -> Tensor:
        """S_k (b, l, h_kv·d_low) of S_q (b, l, h_q·d_low); the same tensor where h_kv = h_q."""
        stages = self.stages_for_keys[adapter_name]
        modules = self._of_adapter(adapter_name, stages)
        return _through(modules, self._folded.get((adapter_name, stages)), for_queries)

    def prepare_for_inference(self) -> None:
        """Folds W_proj and W_GQA of each adapter where that is cheaper; `train()` takes it back."""
        for stages in (self.stages, self.stages_for_keys):
            for name, of_adapter in stages.items():
                folded = fold(self._of_adapter(name, of_adapter))
                if folded is not None:
                    self._folded[name, of_adapter] = folded

    def train(self, mode: bool = True) -> RosaLayer:
        """PyTorch's; to train ends what `prepare_for_inference` began."""
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
            hooks = module._forward_hooks
            for key in [key for key, hook in hooks.items() if hook is _modulate_output]:
                del hooks[key]
                forget(module)
        return self.base_layer

    def cast_as_base_layer(self, adapter_name: str) -> None:
        """Moves an adapter's weights to the device and the dtype of the attention's."""
        super()._move_adapter_to_device_of_base_layer(adapter_name)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """PEFT calls this on weights that it has just loaded, which must not be rounded."""
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
