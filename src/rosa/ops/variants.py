"""Which implementation of the modulation runs; `use` or $ROSA_OPS choose another."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from rosa.errors import RosaError

Variant = Literal["reference", "autograd", "triton"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
_SWITCH, _INTERPRETER = "ROSA_OPS", "TRITON_INTERPRET"
# Read once: os.environ is slow for what every layer asks at every token.
_from_environment = os.environ.get(_SWITCH, "")
_in_use: ContextVar[Variant | None] = ContextVar("rosa_ops", default=None)


@contextmanager
def use(variant: Variant) -> Iterator[None]:
    """Runs the modulation in this variant inside the block, in backward passes too.

    `autograd`, the default, keeps little for the backward pass and writes in place; `reference` is
    plain PyTorch; `triton` is `autograd` as fused kernels. $ROSA_OPS sets one for a process.

    Raises RosaError for an unknown name, and for a variant that cannot run here.
    """
    token = _in_use.set(_checked(variant, "rosa.ops.use"))
    try:
        yield
    finally:
        _in_use.reset(token)


def select_variant(hidden_states: Tensor, *cos_sin: Tensor) -> Variant:
    """The variant for a call of an attention module with this input, cos and sin."""
    if needs_reference(hidden_states, *cos_sin):
        return "reference"
    variant = _in_use.get() or _environment_variant(_from_environment)
    if variant == "triton" and not hidden_states.is_cuda:
        _check_interpreter(hidden_states.device)
    return variant


def needs_reference(hidden_states: Tensor, *cos_sin: Tensor) -> bool:
    """Whether only the plain formulas fit this call.

    A compiler fuses them; a tensor of another kind (sharded, traced) has its own operations; and
    the other variants give no gradients to the angles.
    """
    return (
        torch.compiler.is_compiling()
        or type(hidden_states) is not Tensor
        or _intercepted()
        or any(tensor.requires_grad for tensor in cos_sin)
    )


def _intercepted() -> bool:
    """Whether something keeps or transforms single operations, as functions without side effects.

    Selective checkpointing keeps an operation's output and gives it again later, modulated already
    if it was written to; torch.func and torch.jit.trace cannot go through the others.
    """
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._is_tracing()
    )


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def check_environment() -> None:
    """Raises RosaError where $ROSA_OPS names a variant that cannot run here."""
    if _environment_variant(_from_environment) == "triton" and not torch.cuda.is_available():
        _check_interpreter("cpu")


def _check_interpreter(device: object) -> None:
    if os.environ.get(_INTERPRETER) != "1":
        raise RosaError(
            f"rosa.ops is set to triton, which needs a GPU, but the model is on {device}; use "
            f"autograd there, or set {_INTERPRETER}=1 before Python starts to interpret it slowly"
        )


@cache
def _environment_variant(value: str) -> Variant:
    return _checked(value, f"the environment variable {_SWITCH}") if value else "autograd"


def _checked(value: str, where: str) -> Variant:
    if value not in VARIANTS:
        raise RosaError(f"{where} names '{value}'; choose from {', '.join(VARIANTS)}")
    if value == "triton" and not has_triton():
        raise RosaError(f"{where} names triton, which is not installed: pip install triton")
    return value
