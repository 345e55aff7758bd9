"""Modules of which only the input is kept for the backward pass; the rest is recomputed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook

from rosa.ops.first_order import first_order

Autocast = tuple[str, torch.dtype | None]  # device type, and the dtype; None where it is off


def run_checkpointed(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The modules applied one after another, bit for bit; in backward they run again.

    For modules that are cheap relative to what they would save: tensors as large as `x`, which is
    saved by others anyway. They must draw no random numbers and change no buffers. Where there is
    nothing to gain or something could go unnoticed (no gradient for a weight, forward or backward
    hooks, a compiler at work), they run as they are.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if any(has_hooks(module) for module in modules) or not saves_memory(x, parameters):
        return _chain(modules, x)
    return _Checkpointed.apply(modules, x, *parameters)


def saves_memory(x: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether autograd, as it is in eager code, would keep more than x for these parameters."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(x) is Tensor
        and any(parameter.requires_grad for parameter in parameters)
    )


def _chain(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def has_hooks(module: nn.Module) -> bool:
    """Whether it has hooks that would run twice, or would see tensors outside of the graph."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__  # Accelerate's hooks replace it
        or _has_any_global_hook()  # PyTorch's FlopCounterMode has some
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module only multiplies by its own weight (out, in): no bias, hooks or subclass."""
    parameters = module._parameters
    return (
        type(module) is nn.Linear
        and type(parameters.get("weight")) is nn.Parameter
        and parameters.get("bias") is None
        and not has_hooks(module)
    )


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, modules: Sequence[nn.Module], x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.modules, ctx.autocast = modules, autocast_of(x)
        ctx.save_for_backward(x, *parameters)
        with same_autocast(ctx.autocast):
            result = _chain(modules, x)
        return result.detach() if result is x else result

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # Copies of all inputs: hooks of the parameters themselves run once, outside of here.
        needed = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(needs)
            for tensor, needs in zip(ctx.saved_tensors, needed, strict=True)
        ]
        x, parameters = inputs[0], iter(inputs[1:])
        with torch.enable_grad(), same_autocast(ctx.autocast):
            for module in ctx.modules:
                x = _with_parameters(module, parameters, x)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        gradients = iter(torch.autograd.grad(x, wanted, gradient, allow_unused=True))
        return None, *(next(gradients) if needs else None for needs in needed)


def _with_parameters(module: nn.Module, parameters: Iterator[Tensor], x: Tensor) -> Tensor:
    """The module's output with the next of `parameters` in place of its own."""
    own = {name: next(parameters) for name, _ in module.named_parameters()}
    return functional_call(module, own, (x,)) if own else module(x)


def autocast_of(x: Tensor) -> Autocast:
    """The autocast that is on for the tensor's device."""
    device = x.device.type
    on = torch.is_autocast_enabled(device)
    return device, torch.get_autocast_dtype(device) if on else None


def same_autocast(state: Autocast) -> AbstractContextManager[Any]:
    """Without the cache of cast weights: one filled here would have no gradient for others."""
    device, dtype = state
    if dtype is not None:
        return torch.autocast(device, dtype=dtype, cache_enabled=False)
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
