"""The forward hook that modulates queries or keys, and how a `RosaLayer` hands it a modulation.

The modulation is stored in the `__dict__` of the hooked module for the length of one call of the
attention module. Each thread has its own: several may run one model at once, as those of a server
do.

Under `torch.compile`, a gradient-checkpointed layer is traced as a separate graph, in which
Dynamo forbids changes of anything that outlives it: it cannot see that these are undone before the
layer ends, and would break the graph at every layer. So that check is disabled. The graph
that is recomputed in the backward pass holds the tensors themselves, no dictionary. A graph knows
no threads: its modulations are stored separately, and it reads those of all threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from rosa.attention.heads import replace_heads, split_heads
from rosa.ops import (
    PairRotation,
    PairSignal,
    Variant,
    modulate,
    modulate_post_rotation,
    modulate_pre_rotation,
    signal_of,
)
from rosa.rope.cos_sin import CosSin

_PENDING = "_rosa_pending"  # of a compiler
_BY_THREAD = "_rosa_pending_by_thread"
# Absent before PyTorch 2.9, where a compiled model with gradient checkpointing is a slower one.
_UNCHECKED = "_disable_side_effect_safety_checks_for_current_subtracer"
# Traced after a graph break, the write through `as_strided` was seen to give wrong numbers
# (PyTorch 2.13, backend aot_eager; tests/roae/test_compile.py).
_modulate_uncompiled = torch.compiler.disable(modulate)


class Modulation(NamedTuple):
    """What the hook needs to modulate one output: everything but the output itself."""

    signals: tuple[PairSignal, ...]  # whose `pairs_of` are `LowPairs`
    alpha: float
    rotation: CosSin | PairRotation | None  # that follows, for "post"; None for "pre"
    variant: Variant  # "reference" takes a CosSin, the others a PairRotation

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """The output of the hooked module, modulated, in its own shape and dtype."""
        rotation = self.rotation
        if isinstance(rotation, PairRotation) or (rotation is None and self.variant != "reference"):
            # Compiled alone, within a layer that is not: what that has prepared is for eager code.
            act = _modulate_uncompiled if torch.compiler.is_compiling() else modulate
            return act(
                output,
                self.signals,
                self.alpha,
                rotation,
                in_place=_can_write(module, inputs, output),
                variant=self.variant,
            )
        for low, source, activate in self.signals:
            signal = signal_of(source, activate).flatten(2).unflatten(-1, (low.point.heads, -1))
            z = split_heads(output, low.point, low.head_dim)
            if rotation is None:
                z = modulate_pre_rotation(z, signal, self.alpha, low.pairs)
            else:
                cos, sin = (tensor.unsqueeze(-2) for tensor in rotation)
                z = modulate_post_rotation(z, signal, self.alpha, low.pairs, cos, sin)
            output = replace_heads(output, z, low.point)
        return output


def modulate_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook of the last module before rotation."""
    by_thread = module.__dict__.get(_BY_THREAD, {})
    if torch.compiler.is_compiling():
        modulations = [modulation for own in by_thread.values() for modulation in own]
    else:
        modulations = by_thread.get(get_ident(), [])
    for modulation in [*module.__dict__.get(_PENDING, ()), *modulations]:
        output = modulation(module, inputs, output)
    return output


def set_modulation(modules: Iterable[nn.Module], modulations: Iterable[Modulation]) -> None:
    """Gives each hooked module a modulation, until `clear_modulation`."""
    if torch.compiler.is_compiling():
        for module, modulation in zip(modules, modulations, strict=True):
            _unchecked(_append, module, modulation)
        return
    thread = get_ident()
    for module, modulation in zip(modules, modulations, strict=True):
        module.__dict__.setdefault(_BY_THREAD, {}).setdefault(thread, []).append(modulation)


def clear_modulation(modules: Iterable[nn.Module]) -> None:
    """Takes from each hooked module its modulations, if it has any."""
    if torch.compiler.is_compiling():
        _unchecked(_clear, modules)
    else:
        thread = get_ident()
        for module in modules:
            module.__dict__.get(_BY_THREAD, {}).pop(thread, None)


def hook(module: nn.Module) -> None:
    """Registers the forward hook on a module, once."""
    if modulate_output not in module._forward_hooks.values():
        module.register_forward_hook(modulate_output)


def unhook(module: nn.Module) -> None:
    """Removes the hook, and what it left on the module."""
    hooks = module._forward_hooks
    for key in [key for key, function in hooks.items() if function is modulate_output]:
        del hooks[key]
        module.__dict__.pop(_PENDING, None)
        module.__dict__.pop(_BY_THREAD, None)


def _append(module: nn.Module, modulation: Modulation) -> None:
    module.__dict__.setdefault(_PENDING, []).append(modulation)


def _clear(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.__dict__.pop(_PENDING, None)


def _unchecked(change: Callable[..., None], *args: Any) -> None:
    if hasattr(torch._dynamo.utils, _UNCHECKED):
        getattr(torch._dynamo.utils, _UNCHECKED)(change, *args)
    else:
        change(*args)


def _can_write(module: nn.Module, inputs: tuple, output: Tensor) -> bool:
    """Whether the output has no other reader, so that it can be modulated in place.

    Neither a linear layer nor a norm keeps its output for its backward pass. A norm that is off
    (`nn.Identity`) gives its input; other hooks, and a `forward` that was replaced on the instance,
    may keep what they see.
    """
    if len(module._forward_hooks) != 1 or _global_forward_hooks or "forward" in module.__dict__:
        return False
    if isinstance(module, nn.Linear):
        return True
    storage = output.untyped_storage().data_ptr()
    return "norm" in type(module).__name__.lower() and not any(
        isinstance(x, Tensor) and x.untyped_storage().data_ptr() == storage for x in inputs
    )
