"""What the hook of a tapped module does with its output: the modulation, in the variant chosen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks

from rosa.ops import (
    Part,
    Turning,
    Variant,
    modulate,
    modulate_post_rotation,
    modulate_pre_rotation,
    signal_of,
)
from rosa.roae.taps import as_heads, with_heads
from rosa.rope.turns import Rotation

# Traced after a graph break, the write through `as_strided` was seen to give wrong numbers
# (PyTorch 2.13, backend aot_eager; tests/test_compile.py).
_modulate_uncompiled = torch.compiler.disable(modulate)


class Modulation(NamedTuple):
    """What a hook needs to act on one output: everything but the output itself."""

    parts: tuple[Part, ...]  # whose `low` are `LowPairs`
    alpha: float
    rotation: Rotation | Turning | None  # that follows, for "post"; None for "pre"
    variant: Variant  # "reference" goes with a Rotation, the others with a Turning

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        """The output of the tapped module, modulated, in its own shape and dtype."""
        rotation = self.rotation
        if isinstance(rotation, Turning) or (rotation is None and self.variant != "reference"):
            # Compiled alone, within a layer that is not: what that has prepared is for eager code.
            act = _modulate_uncompiled if torch.compiler.is_compiling() else modulate
            return act(
                output,
                self.parts,
                self.alpha,
                rotation,
                in_place=_nobody_else_has(module, inputs, output),
                variant=self.variant,
            )
        for low, source, activate in self.parts:
            signal = signal_of(source, activate).unflatten(-1, (low.tap.heads, -1))
            z = as_heads(output, low.tap, low.head_dim)
            if rotation is None:
                z = modulate_pre_rotation(z, signal, self.alpha, low.pairs)
            else:
                cos, sin = (turn.unsqueeze(-2) for turn in rotation)
                z = modulate_post_rotation(z, signal, self.alpha, low.pairs, cos, sin)
            output = with_heads(output, z, low.tap)
        return output


def _nobody_else_has(module: nn.Module, inputs: tuple, output: Tensor) -> bool:
    """Whether an output may be written to.

    Neither a linear layer nor a norm keeps its output for its backward pass. A norm that is off
    (`nn.Identity`) gives its input; hooks of others, and a forward that others have put in place
    of the module's own, may keep what they see.
    """
    if len(module._forward_hooks) != 1 or _global_forward_hooks or "forward" in module.__dict__:
        return False
    if isinstance(module, nn.Linear):
        return True
    return "norm" in type(module).__name__.lower() and not any(_share(x, output) for x in inputs)


def _share(x: object, output: Tensor) -> bool:
    return (
        isinstance(x, Tensor)
        and x.untyped_storage().data_ptr() == output.untyped_storage().data_ptr()
    )
