"""Traces how a model rotates: runs its attention modules and intercepts their rotation functions.

It relies on how Transformers' models call their rotation: by functions of the file that defines the
module, named like `apply_rotary_pos_emb`, with the states first and the angles after.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn

_ROTATION = re.compile(r"_?apply_\w*rot\w*")
_LENGTHS = (11, 13, 17, 19)  # one of them is no other size of the model


class DetectionError(Exception):
    """What about an attention module is not understood, as the end of a sentence."""


class _StopForward(Exception):  # noqa: N818  # not an error
    """Ends a forward of which the rest is not needed."""


class RotationCall(NamedTuple):
    """One call of a rotation function."""

    function: Callable[..., Any]
    states: list[Tensor]  # the query, the key or both, before rotation: (b, ..., head_dim)
    args: tuple[Any, ...]  # the others
    kwargs: dict[str, Any]

    def rotate(self, states: list[Tensor]) -> Any:
        """Other states, rotated as these are."""
        return self.function(*states, *self.args, **self.kwargs)


@dataclass
class AttentionCall:
    """One call of an attention module, and the rotations that it made."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rotations: list[RotationCall] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        """By name."""
        positional = inspect.signature(self.module.forward).bind_partial(*self.args).arguments
        return {**positional, **self.kwargs}

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.arguments["hidden_states"].shape[1])

    @property
    def states(self) -> list[Tensor]:
        return [state for rotation in self.rotations for state in rotation.states]


# Sees a rotation before it is made; returns states to rotate instead of its own, or None.
_Intercept = Callable[[RotationCall], "list[Tensor] | None"]


@contextmanager
def _running(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, AttentionCall]]]:
    """The calls of these modules that are running, innermost last, by name."""
    running: list[tuple[str, AttentionCall]] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *call: running.append((name, AttentionCall(*call)))

    def leave(*_: Any) -> None:
        running.pop()

    with ExitStack() as stack:
        for name, module in modules.items():
            before = module.register_forward_pre_hook(enter(name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield running


def rotating_calls(model: nn.Module) -> dict[str, AttentionCall]:
    """Runs the model over a few tokens; by name, the calls of its modules that rotate."""
    calls: dict[str, AttentionCall] = {}

    def intercept(rotation: RotationCall) -> None:
        name, call = running[-1]
        calls[name] = call  # the last, of a module that is called several times
        call.rotations.append(rotation)

    with _running(dict(model.named_modules())) as running, _intercepted(model, intercept):
        _run(model)
    # An indexer inside an attention module (DeepSeek-V3.2) rotates too, but does not attend.
    inside = {name for name in calls for outer in calls if name.startswith(f"{outer}.")}
    return {name: call for name, call in calls.items() if name not in inside}


def _run(model: nn.Module) -> None:
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    config = getattr(model, "config", None)
    if config is not None:
        sizes |= {value for value in vars(config.get_text_config()).values() if type(value) is int}
    length = next(length for length in _LENGTHS if length not in sizes)
    device = next(model.parameters()).device
    if device.type == "meta":
        raise DetectionError("has no weights yet to detect its rotation with")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(3, 3 + length, device=device).unsqueeze(0)
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        # bitsandbytes asserts the sizes that its 4-bit kernels take.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DetectionError(f"does not run on token ids alone ({reason})") from error
    finally:
        for module in training:
            module.training = True


@contextmanager
def _intercepted(model: nn.Module, intercept: _Intercept) -> Iterator[None]:
    """Intercepts the rotation functions of the files that define the model's modules."""
    nested = False  # one rotation function may call another

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(function).parameters)

        def rotate(*args: Any, **kwargs: Any) -> Any:
            nonlocal nested
            if nested:
                return function(*args, **kwargs)
            nested = True
            try:
                rotation = _read_rotation(function, names, args, kwargs)
                return rotation.rotate(intercept(rotation) or rotation.states)
            finally:
                nested = False

        return rotate

    homes = {type(module).__module__ for module in model.modules()}
    with ExitStack() as stack:
        for home in filter(None, map(sys.modules.get, homes)):
            for name, value in list(vars(home).items()):
                if inspect.isfunction(value) and _ROTATION.fullmatch(name):
                    stack.enter_context(mock.patch.object(home, name, wrapped(value)))
        yield


def _read_rotation(
    function: Callable[..., Any], names: list[str], args: Any, kwargs: Any
) -> RotationCall:
    """Tells the states from the angles: those are first, and have heads (four axes)."""
    kwargs = dict(kwargs)
    args = list(args)
    for name in names[len(args) :]:  # states given by keyword become positional
        if isinstance(kwargs.get(name), Tensor) and kwargs[name].ndim == 4:
            args.append(kwargs.pop(name))
    states = []
    while args and isinstance(args[0], Tensor) and args[0].ndim == 4:
        states.append(args.pop(0))
    return RotationCall(function, states, tuple(args), kwargs)


@contextmanager
def _intercepted_in(module: nn.Module, intercept: _Intercept) -> Iterator[None]:
    """`_intercepted` without the rotations of submodules: an indexer has queries of its own."""
    children = {name: child for name, child in module.named_modules() if name}
    with (
        _running(children) as inside,
        _intercepted(module, lambda rotation: None if inside else intercept(rotation)),
    ):
        yield


@torch.no_grad()
def states_before_rotation(call: AttentionCall) -> list[Tensor]:
    """Runs the attention module again, up to its last rotation; the states before rotation."""
    states: list[Tensor] = []

    def intercept(rotation: RotationCall) -> None:
        states.extend(rotation.states)
        if len(states) >= len(call.states):
            raise _StopForward

    with _intercepted_in(call.module, intercept), suppress(_StopForward):
        call.module(*call.args, **call.kwargs)
    return states


@torch.no_grad()
def attention_output(call: AttentionCall, changed: int | None) -> Tensor:
    """The output (b, l, ...) with one of the states before rotation changed at position 0."""
    seen = 0

    def intercept(rotation: RotationCall) -> list[Tensor]:
        nonlocal seen
        states = list(rotation.states)
        if changed is not None and seen <= changed < seen + len(states):
            states[changed - seen] = state = states[changed - seen].clone()
            by_position = state if state.shape[1] == call.length else state.transpose(1, 2)
            by_position[:, 0] = by_position[:, 0].flip(-1) + 3.0
        seen += len(states)
        return states

    with _intercepted_in(call.module, intercept):
        output = call.module(*call.args, **call.kwargs)
    return output if isinstance(output, Tensor) else output[0]
