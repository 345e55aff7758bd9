"""Which implementation of the modulation runs: chosen by itself, or by `use` or $ROSA_OPS."""

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
_in_environment = os.environ.get(_SWITCH, "")
_asked: ContextVar[Variant | None] = ContextVar("rosa_ops", default=None)


@contextmanager
def use(variant: Variant) -> Iterator[None]:
    """Inside, the modulation runs in this variant, also its backward passes' recomputation.

    `reference` is plain PyTorch, `autograd` keeps less for the backward pass and writes in place,
    `triton` does the same in one kernel. The environment variable ROSA_OPS sets one for good.

    Raises RosaError for a name that there is not, and for a variant that cannot run here.
    """
    token = _asked.set(_checked(variant, "rosa.ops.use"))
    try:
        yield
    finally:
        _asked.reset(token)


def chosen(hidden_states: Tensor, *rotation: Tensor) -> Variant:
    """The variant for an attention module with this input, and this cos and sin."""
    # A compiler fuses the plain formulas; a tensor of another kind (sharded, traced) has its own;
    # and the others give no gradients to the angles.
    if torch.compiler.is_compiling() or type(hidden_states) is not Tensor or _watched():
        return "reference"
    for turn in rotation:
        if turn.requires_grad:
            return "reference"
    asked = _asked.get() or _from_environment(_in_environment)
    if asked is None:
        return "triton" if hidden_states.is_cuda and has_triton() else "autograd"
    if asked == "triton" and not hidden_states.is_cuda:
        _check_interpreter(hidden_states.device)
    return asked


def _watched() -> bool:
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
    """Whether the package is there."""
    return importlib.util.find_spec("triton") is not None


def check_environment() -> None:
    """Raises RosaError where the environment asks for a variant that cannot run here."""
    if _from_environment(_in_environment) == "triton" and not torch.cuda.is_available():
        _check_interpreter("cpu")


def _check_interpreter(device: object) -> None:
    if os.environ.get(_INTERPRETER) != "1":
        raise RosaError(
            f"rosa.ops is told to use triton, which runs on a GPU, on {device}; "
            f"use autograd there, or set {_INTERPRETER}=1 before Python starts to try it slowly"
        )


@cache
def _from_environment(value: str) -> Variant | None:
    return _checked(value, f"the environment variable {_SWITCH}") if value else None


def _checked(value: str, where: str) -> Variant:
    if value not in VARIANTS:
        raise RosaError(f"{where} names '{value}'; it must be one of {', '.join(VARIANTS)}")
    if value == "triton" and not has_triton():
        raise RosaError(
            f"{where} asks for triton, which is not installed: pip install triton, or leave it out"
        )
    return value
