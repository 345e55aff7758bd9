"""`AttentionLayer` wraps one attention module and modulates its queries and keys.

    H ──┬── the adapter's modules ─▶ signals of queries and keys
        └── attention: q_proj ─ (q_norm) ─▶ modulate ─▶ rotation ─▶ ...
                       k_proj ─ (k_norm) ─▶ modulate ─▶ rotation ─▶ cache ...

The attention's own forward runs unchanged: the layer computes the signals from the module's input
and hands them (`set_pending`) to the forward hooks of the last modules before rotation. Nothing
outlives the call, so gradient checkpointing and exceptions leave no trace; the hook is a plain
function that reads from its own module, so copies, pickles and replicas of a model are independent.
"""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rosa.attention.heads import LowPairs
from rosa.attention.hooks import Modulation, hook, unhook
from rosa.attention.peft_compat import HALF, KeepRequiresGradMixin, check_single_active
from rosa.attention.pending import clear_pending, set_pending
from rosa.errors import RosaError
from rosa.ops import PairRotation, PairSignal, Variant
from rosa.rope import RopeLayout
from rosa.rope.cos_sin import CosSin

NO_MERGE = (
    "a {} adapter depends on its input and cannot be merged into the weights; "
    "use unload() to get the base model back, or keep the adapter attached"
)


class AttentionLayer(KeepRequiresGradMixin, nn.Module, BaseTunerLayer):
    """An attention module with adapters, each with its own weights; one is active at a time.

    A method's subclass gives `update_layer`, which adds an adapter, `_modulations` and `signals`.
    """

    method = ""  # its name in error messages
    prefix = ""  # of the names of its modules
    # Of the modules of the adapters that there are.
    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ("alpha", "low_pairs")

    def __init__(self, base_layer: nn.Module, layout: RopeLayout) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.layout = layout
        self.alpha: dict[str, float] = {}
        self.low_pairs: dict[str, tuple[LowPairs, LowPairs]] = {}  # of queries, of keys
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self.merged_adapters: list[str] = []
        parameters = inspect.signature(type(base_layer).forward).parameters
        self._parameters_of_forward = list(parameters)[1:]  # without self
        # Names of the modules whose outputs hold the queries and the keys: one or two.
        self._hooked = tuple(dict.fromkeys((layout.query.module, layout.key.module)))
        self._hooked_modules(base_layer)

    def _add_modules(self, adapter_name: str, modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
        """Adds an adapter's modules, each under its prefixed name; returns those names."""
        modules = {f"{self.prefix}{name}": module for name, module in modules.items()}
        for name, module in modules.items():
            if name not in self.adapter_layer_names:
                self.add_module(name, nn.ModuleDict())
                self.adapter_layer_names = (*self.adapter_layer_names, name)
            getattr(self, name)[adapter_name] = module
        return tuple(modules)

    def _finish_adapter(self, adapter_name: str, config: Any, pairs: Sequence[int]) -> None:
        """The end of `update_layer`: the adapter modulates these pairs of a head."""
        layout = self.layout
        self.alpha[adapter_name] = config.alpha
        dimensions = layout.dimensions(pairs)
        self.low_pairs[adapter_name] = (
            LowPairs(layout.query, layout.head_dim, dimensions),
            LowPairs(layout.key, layout.head_dim, dimensions),
        )
        self.cast(adapter_name, upcast=False)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @abstractmethod
    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Adds an adapter's weights."""

    @abstractmethod
    def _modulations(
        self, name: str, base: nn.Module, arguments: Mapping[str, Any]
    ) -> tuple[Modulation, ...]:
        """What an adapter does to the output of each hooked module in a call."""

    @abstractmethod
    def signals(self, adapter_name: str, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """S (b, l, heads, dimensions) of queries and keys: α·S is how far each changes."""

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's: activates one adapter (or none).

        Names of other methods' adapters, in other modules of the same model, may be among them.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        check_single_active(self.method, [name for name in names if name in self.low_pairs])
        super().set_adapter(names, inference_mode=inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The attention module's own forward, with its queries and keys modulated."""
        base: Any = self._modules["base_layer"]
        name = self._active_own_adapter()
        if name is None:
            return base(*args, **kwargs)
        arguments = kwargs
        if args:
            arguments = dict(zip(self._parameters_of_forward, args, strict=False)) | kwargs
        hooked = self._hooked_modules(base)
        try:
            set_pending(hooked, self._modulations(name, base, arguments))
            return base(*args, **kwargs)
        finally:
            clear_pending(hooked)

    def _active_own_adapter(self) -> str | None:
        """The adapter that modulates, if any."""
        if not self._disable_adapters:
            for name in self.active_adapters:
                if name in self.low_pairs:
                    return name
        return None

    def _by_output(
        self,
        signals: tuple[PairSignal, PairSignal],
        alpha: float,
        rotation: CosSin | PairRotation | None,
        variant: Variant,
    ) -> tuple[Modulation, ...]:
        """The modulation of each hooked output, from the signals of queries and of keys."""
        if len(self._hooked) == 1:
            return (Modulation(signals, alpha, rotation, variant),)
        return tuple(Modulation((signal,), alpha, rotation, variant) for signal in signals)

    def _hooked_modules(self, base: nn.Module) -> tuple[nn.Module, ...]:
        """The modules whose outputs hold the queries and the keys, or the one, with the hook.

        They get it when they are first seen: another method's adapter may wrap one at any time.
        """
        # As get_submodule, but faster: decoding asks for each token.
        hooked = tuple(base._modules.get(name) or base.get_submodule(name) for name in self._hooked)
        for module in hooked:
            hook(module)
        return hooked

    def _adapter_modules(self, adapter_name: str, names: Sequence[str]) -> list[nn.Module]:
        return [self._modules[name]._modules[adapter_name] for name in names]  # type: ignore

    def _in_adapter_dtype(self, adapter_name: str, names: Sequence[str], x: Tensor) -> Tensor:
        """x in the dtype of the weights of these modules, or autocast's where it is on."""
        dtype = _dtype_of(self._adapter_modules(adapter_name, names))
        return x if x.dtype == dtype else self._cast_input_dtype(x, dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise RosaError(NO_MERGE.format(self.method))

    def unmerge(self) -> None:
        """Nothing to do: such an adapter is never merged."""

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The attention module as it was before it was wrapped (PEFT calls this to unload)."""
        if merge:
            raise RosaError(NO_MERGE.format(self.method))
        for module in self.base_layer.modules():
            unhook(module)
        return self.base_layer

    def cast(self, adapter_name: str, *, upcast: bool) -> None:
        """Casts an adapter's half-precision weights to float32, or all as the attention module's.

        The latter moves them to its device too.
        """
        if not upcast:
            self._move(adapter_name, *self._base_device_and_dtype())
            return
        for parameter in self.adapter_parameters(adapter_name):
            if parameter.dtype in HALF:
                parameter.data = parameter.data.float()  # the one that an optimizer holds

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """PEFT calls this on weights that it has just loaded: moves them, keeping their dtype."""
        self._move(adapter_name, device or self._base_device_and_dtype()[0], None)

    def _move(self, adapter_name: str, device: torch.device, dtype: torch.dtype | None) -> None:
        for name in self.adapter_layer_names:
            weights = getattr(self, name)
            if adapter_name in weights and not any(
                p.is_meta for p in weights[adapter_name].parameters()
            ):
                weights[adapter_name].to(device, dtype)

    def _base_device_and_dtype(self) -> tuple[torch.device, torch.dtype | None]:
        """Those of the attention module's first weight; a quantized one's is what it computes in.

        PEFT's own asks for `base_layer.weight`, which an attention module does not have.
        """
        module: Any = next(each for each in self.base_layer.modules() if hasattr(each, "weight"))
        dtype = getattr(module, "compute_dtype", module.weight.dtype)
        floating = dtype is not None and dtype.is_floating_point
        return module.weight.device, dtype if floating else None

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


def _dtype_of(modules: Sequence[nn.Module]) -> torch.dtype:
    """Of the first weight; looked up by its usual name, since decoding asks for each token."""
    weight = getattr(modules[0], "weight", None)
    if not isinstance(weight, Tensor):
        weight = next(weight for module in modules for weight in module.parameters())
    return weight.dtype
