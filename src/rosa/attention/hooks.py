"""The forward hook that modulates queries or keys, which its attention module hands it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from rosa.attention.heads import modulate_heads
from rosa.attention.pending import forget_pending, pending_of
from rosa.ops import PairRotation, PairSignal, Variant, modulate, signal_of
from rosa.rope.cos_sin import CosSin

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
            signal = signal_of(source, activate)
            output = modulate_heads(output, low, signal, self.alpha, rotation)
        return output


def modulate_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Forward hook of the last module before rotation."""
    for modulation in pending_of(module):
        output = modulation(module, inputs, output)
    return output


def hook(module: nn.Module) -> None:
    """Registers the forward hook on a module, once."""
    if modulate_output not in module._forward_hooks.values():
        module.register_forward_hook(modulate_output)


def unhook(module: nn.Module) -> None:
    """Removes the hook, and what it left on the module."""
    hooks = module._forward_hooks
    for key in [key for key, function in hooks.items() if function is modulate_output]:
        del hooks[key]
        forget_pending(module)


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
