"""RoAE as a part of a model of Transformers, without PEFT.

`add_roae` gives the attention modules of a decoder what an adapter gives them:

    H ──┬── rosa ─▶ S_q, S_k
        └── attention: q_proj ─ (q_norm) ─▶ modulate with S_q ─▶ rotation ─▶ ...
                       k_proj ─ (k_norm) ─▶ modulate with S_k ─▶ rotation ─▶ cache ...

`rosa` holds the factors; the last modules before rotation are wrapped (`ModulatedModule`), so that
whatever takes the place of what they wrap, a quantized layer or a server's own, is modulated too.
The attention's forward is its own.

`rosa export` writes this file, and what it imports of rosa, into the folder of the exported model.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rosa.attention.heads import LowPairs, modulate_heads
from rosa.attention.pending import clear_pending, pending_of, set_pending
from rosa.ops.modulation import PairModulation, modulate_pairs_
from rosa.ops.reference import signals_of
from rosa.ops.rotation import PairRotation, pair_rotation
from rosa.ops.variants import needs_reference
from rosa.rope.cos_sin import CosSin, check_cos_sin, cos_sin_of
from rosa.rope.layout import CosSinSource, HookPoint, RopeLayout


class Modulation(NamedTuple):
    """What modulates the queries or keys in one output."""

    low: LowPairs
    signal: Tensor
    alpha: float
    rotation: CosSin | PairRotation | None  # that follows, for "post"; None for "pre"
    plain: bool  # by the formulas that any compiler and exporter can trace

    def __call__(self, output: Tensor) -> Tensor:
        low, signal, alpha, rotation, plain = self
        if plain:
            return modulate_heads(output, low, signal, alpha, rotation)  # type: ignore[arg-type]
        output = output.clone()
        by = PairModulation(signal, False, alpha, rotation)  # type: ignore[arg-type]
        modulate_pairs_(low(output), by, keep=False)
        return output


class ModulatedModule(nn.Module):
    """The last module before rotation, and the modulation of its output."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_layer(*args, **kwargs)
        modulations = pending_of(self)
        if not modulations and not output.is_meta:
            raise RuntimeError(
                "this module was called outside its attention module, which computes what its "
                "output is modulated with: call the attention module"
            )
        for modulation in modulations:
            output = modulation(output)
        return output


class RoaeSignal(nn.Module):
    """The factors of RoAE in one attention module, and the signals that they make.

    With H (b, l, d) the input of the attention module:

        P = W_proj(H), S_q = SiLU(P) (b, l, h_q·d_low), S_k = W_GQA(S_q) (b, l, h_kv·d_low)

    Args:
        settings: of the model, `config.rosa`.
        group: the one of `settings["groups"]` that the module belongs to.
        arguments: names of those of the attention's forward.
    """

    def __init__(
        self, settings: Mapping[str, Any], group: Mapping[str, Any], arguments: list[str]
    ) -> None:
        super().__init__()
        given = group["layout"]
        points = {name: HookPoint(**given[name]) for name in ("query", "key")}
        source = given["cos_sin"] and CosSinSource(**given["cos_sin"])
        self.layout = layout = RopeLayout(**{**given, **points, "cos_sin": source})
        pairs = group["pairs"]
        dimensions = layout.dimensions(
            range(*pairs["range"]) if "range" in pairs else pairs["list"]
        )
        self.low = tuple(LowPairs(p, layout.head_dim, dimensions) for p in points.values())
        self.arguments = arguments
        self.alpha: float = settings["alpha"]
        self.bound: float | None = settings["bound"]
        self.post: bool = settings["rope_stage"] == "post"
        self.hooked = list(dict.fromkeys(point.module for point in points.values()))
        self.projection: list[str] = list(group["projection"])
        self.gqa: list[str] = list(group["gqa"])
        for name, shape in {**group["projection"], **group["gqa"]}.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """S_q and S_k of the attention's input."""
        dtype = getattr(self, self.projection[0]).dtype
        p = self._through(self.projection, hidden_states.to(dtype))
        return signals_of(p, self._to_keys if self.gqa else None, self.bound)

    def _to_keys(self, for_queries: Tensor) -> Tensor:
        return self._through(self.gqa, for_queries)

    def _through(self, names: list[str], x: Tensor) -> Tensor:
        for name in names:
            weight = getattr(self, name)
            if weight.ndim == 1:  # the same signal whatever the input is
                x = weight.expand(*x.shape[:-1], -1)
            else:
                x = nn.functional.linear(x, weight)
        return x

    def modulations(self, attention: nn.Module, arguments: Mapping[str, Any]) -> list[Modulation]:
        """Those of the queries and of the keys in one call of the attention module."""
        hidden_states = arguments["hidden_states"]
        cos_sin = None
        if self.post:
            cos_sin = cos_sin_of(self.layout, attention, arguments)
        else:
            check_cos_sin(self.layout, attention, arguments)
        low = self.low[0]
        plain = not low.strided or needs_reference(hidden_states, *(cos_sin or ()))
        rotation: Any = cos_sin
        if cos_sin is not None and not plain:
            rotation = pair_rotation(*cos_sin, low.pairs, self.alpha, hidden_states.dtype)
        signals = self(hidden_states)
        return [
            Modulation(low, signal, self.alpha, rotation, plain)
            for low, signal in zip(self.low, signals, strict=True)
        ]

    def modules_of(self, attention: nn.Module) -> list[nn.Module]:
        """Those whose outputs are modulated: two, or twice the same."""
        modules = [attention.get_submodule(name) for name in self.hooked]
        return modules if len(modules) == 2 else modules * 2


def _before(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attention module."""
    rosa = attention.rosa
    modules = rosa.modules_of(attention)
    clear_pending(modules)  # of a call that an error ended
    arguments = dict(zip(rosa.arguments, args, strict=False)) | kwargs
    set_pending(modules, rosa.modulations(attention, arguments))


def _after(attention: Any, *_: Any) -> None:
    """Forward hook of an attention module."""
    clear_pending(attention.rosa.modules_of(attention))


def add_roae(decoder: nn.Module, settings: Mapping[str, Any]) -> None:
    """Gives the attention modules that `settings` (`config.rosa`) names RoAE, with zero factors."""
    for group in settings["groups"]:
        for name in group["modules"]:
            attention: Any = decoder.get_submodule(name)
            arguments = list(inspect.signature(type(attention).forward).parameters)[1:]
            rosa = RoaeSignal(settings, group, arguments)
            for hooked in rosa.hooked:
                parent, _, child = hooked.rpartition(".")
                owner = attention.get_submodule(parent)
                setattr(owner, child, ModulatedModule(getattr(owner, child)))
            attention.rosa = rosa
            attention.register_forward_pre_hook(_before, with_kwargs=True)
            attention.register_forward_hook(_after)
