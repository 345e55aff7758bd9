"""Watches a model rotate: its attention modules run, with its rotation function reported.

This is what has to know how Transformers' models call their rotation: by functions of the file that
defines the module, named like `apply_rotary_pos_emb`, with the states first and the angles after.
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
_LENGTHS = (11, 13, 17, 19)  # one of them is no size of the model, so that it tells the axes apart


class CannotMeasureError(Exception):
    """Says, as the end of a sentence, what about an attention module is not understood."""


class _StopForward(Exception):  # noqa: N818  # not an error: the rest of a forward is not needed
    """Ends a forward where nothing after that point matters."""


class Rotation(NamedTuple):
    """One call of a rotation function, with the states to rotate among its arguments."""

    function: Callable[..., Any]
    states: list[Tensor]  # the query, the key or both, not yet rotated
    rest: tuple[Any, ...]
    named: dict[str, Any]

    def of(self, states: list[Tensor]) -> list[Tensor]:
        """Other states, rotated as these are."""
        rotated = self.function(*states, *self.rest, **self.named)
        return list(rotated) if isinstance(rotated, tuple) else [rotated]


@dataclass
class Call:
    """What one attention module was called with, and what it did up to its last rotation."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rotations: list[Rotation] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        signature = inspect.signature(type(self.module).forward)
        bound = signature.bind_partial(self.module, *self.args, **self.kwargs).arguments
        return {**bound.pop("kwargs", {}), **bound}

    @property
    def length(self) -> int:
        """Of the text that the module got."""
        return int(self.arguments["hidden_states"].shape[1])

    @property
    def states(self) -> list[Tensor]:
        return [state for rotation in self.rotations for state in rotation.states]


_Note = Callable[[Rotation], "list[Tensor] | None"]


def text_length(model: nn.Module) -> int:
    """A length to watch the model at, which no other size of it equals."""
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    config = getattr(model, "config", None)
    if config is not None:
        sizes |= {value for value in vars(config.get_text_config()).values() if type(value) is int}
    return next(length for length in _LENGTHS if length not in sizes)


def calls_that_rotate(model: nn.Module, length: int) -> dict[str, Call]:
    """Runs the model over `length` tokens; the calls of its modules that rotate, by name."""
    calls: dict[str, Call] = {}
    running: list[tuple[str, Call]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            running.append((name, Call(module, args, kwargs)))

        return hook

    def leave(*_: Any) -> None:
        running.pop()

    def note(rotation: Rotation) -> None:
        name, call = running[-1]
        calls[name] = call  # the last, of a module that is called several times
        call.rotations.append(rotation)

    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(enter(name), with_kwargs=True)
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(_watched_rotation(model, note))
        _run(model, length)
    # An indexer inside an attention module (DeepSeek-V3.2) rotates too, but does not attend.
    inside = {name for name in calls for outer in calls if name.startswith(f"{outer}.")}
    return {name: call for name, call in calls.items() if name not in inside}


def _run(model: nn.Module, length: int) -> None:
    device = next(model.parameters()).device
    if device.type == "meta":
        raise CannotMeasureError("has no weights yet to measure its rotation with")
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.arange(3, 3 + length, device=device).unsqueeze(0)
            model(input_ids=ids, use_cache=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, AssertionError) as error:
        # Assertions are bitsandbytes' way to refuse sizes that its kernels for 4 bits do not take.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CannotMeasureError(f"does not run on token ids alone ({reason})") from error
    finally:
        for module in training:
            module.training = True


@contextmanager
def _watched_rotation(model: nn.Module, note: _Note) -> Iterator[None]:
    """Reports every call of a rotation function of the files that define the model's modules.

    What `note` returns, where it returns something, is rotated instead.
    """
    depth = [0]

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(function).parameters)

        def rotate(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1  # one rotation function may call another
            try:
                if depth[0] > 1:
                    return function(*args, **kwargs)
                rotation = _read_rotation(function, names, args, kwargs)
                states = note(rotation) or rotation.states
                return function(*states, *rotation.rest, **rotation.named)
            finally:
                depth[0] -= 1

        return rotate

    homes = {type(module).__module__ for module in model.modules()}
    with ExitStack() as stack:
        for home in filter(None, map(sys.modules.get, homes)):
            for name, value in list(vars(home).items()):
                if inspect.isfunction(value) and _ROTATION.fullmatch(name):
                    stack.enter_context(mock.patch.object(home, name, watched(value)))
        yield


def _read_rotation(
    function: Callable[..., Any], names: list[str], args: Any, kwargs: Any
) -> Rotation:
    """Tells the states from the angles: those are first, and have heads (four axes)."""
    named = dict(kwargs)
    positional = list(args)
    for name in names[len(positional) :]:  # states given by keyword become positional
        if isinstance(named.get(name), Tensor) and named[name].ndim == 4:
            positional.append(named.pop(name))
    states = []
    while positional and isinstance(positional[0], Tensor) and positional[0].ndim == 4:
        states.append(positional.pop(0))
    return Rotation(function, states, tuple(positional), named)


@contextmanager
def _own_rotation(module: nn.Module, note: _Note) -> Iterator[None]:
    """As `_watched_rotation`, without what submodules turn: an indexer has queries of its own."""
    running: list[nn.Module] = []

    def unless_inside(rotation: Rotation) -> list[Tensor] | None:
        return None if running else note(rotation)

    with ExitStack() as stack:
        for child in set(module.modules()) - {module}:
            before = child.register_forward_pre_hook(lambda m, _: running.append(m))
            after = child.register_forward_hook(lambda *_: (running.pop(), None)[1])
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(_watched_rotation(module, unless_inside))
        yield


def states_before_rotation(call: Call) -> list[Tensor]:
    """Runs the attention module again, up to its last rotation; the states it was to rotate."""
    states: list[Tensor] = []

    def note(rotation: Rotation) -> None:
        states.extend(rotation.states)
        if len(states) >= len(call.states):
            raise _StopForward

    with torch.no_grad(), _own_rotation(call.module, note), suppress(_StopForward):
        call.module(*call.args, **call.kwargs)
    return states


def attention_output(call: Call, changed: int | None) -> Tensor:
    """(b, l, ...), with one of the states to rotate changed at position 0."""
    seen = 0

    def note(rotation: Rotation) -> list[Tensor] | None:
        nonlocal seen
        states = list(rotation.states)
        if changed is not None and seen <= changed < seen + len(states):
            states[changed - seen] = state = states[changed - seen].clone()
            by_position = state if state.shape[1] == length else state.transpose(1, 2)
            by_position[:, 0] = by_position[:, 0].flip(-1) + 3.0
        seen += len(states)
        return states

    length = call.length
    with torch.no_grad(), _own_rotation(call.module, note):
        output = call.module(*call.args, **call.kwargs)
    return output if isinstance(output, Tensor) else output[0]
