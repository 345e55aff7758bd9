"""Measures how a model rotates by watching it: the layout of every attention module that does.

One short text goes through the model, with its rotation function watched; then each attention
module is called again on the input that it got, up to its rotation:

1. The outputs of its submodules are replaced, one at a time, by the numbers 0, 1, 2, ... Where they
   arrive at the rotation unchanged, in whatever order, the submodule is the last before rotation,
   and the order says which of its outputs is which dimension of which head.
2. The rotation function turns unit vectors. What becomes of them says which dimensions form pairs,
   which are not rotated, by what angle each pair turns, and which element of cos and sin does it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple, get_args, get_type_hints
from unittest import mock

import torch
from torch import Tensor, nn

from rosa.rope.layout import Pairing, RopeLayout, Tap, Turns
from rosa.rope.turns import turns_of

_ROTATION = re.compile(r"_?apply_\w*rot\w*")
_LENGTHS = (11, 13, 17, 19)  # one of them is no size of the model, so that it tells the axes apart
_TOLERANCE = 1e-2  # of cos, sin and angles: bfloat16 rounds the first two by 4e-3


class CannotMeasureError(Exception):
    """Says, as the end of a sentence, what about an attention module is not understood."""


class _StopForward(Exception):  # noqa: N818  # not an error: the rest of a forward is not needed
    """Ends a forward where nothing after that point matters."""


class _Rotation(NamedTuple):
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
class _Call:
    """What one attention module was called with, and what it did up to its last rotation."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rotations: list[_Rotation] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        signature = inspect.signature(type(self.module).forward)
        bound = signature.bind_partial(self.module, *self.args, **self.kwargs).arguments
        return {**bound.pop("kwargs", {}), **bound}

    @property
    def states(self) -> list[Tensor]:
        return [state for rotation in self.rotations for state in rotation.states]


_Note = Callable[[_Rotation], "list[Tensor] | None"]


def measure(model: nn.Module) -> dict[str, RopeLayout]:
    """The layout of each attention module that rotates, by name; empty where none is seen to.

    Raises CannotMeasureError where a module rotates in a way that a layout cannot describe, and
    where the model does not run on token ids alone.
    """
    length = _length(model)
    return {name: _layout(call, length) for name, call in _calls(model, length).items()}


def _layout(call: _Call, length: int) -> RopeLayout:
    states = call.states
    if len(states) != 2:
        raise CannotMeasureError(f"rotates {len(states)} times where a query and a key are turned")
    taps = _find_taps(call, length)
    width = states[0].shape[-1]
    head_dim = _head_dim(call.module, taps, width)
    matrices = _matrices(call.rotations[0], length)
    pairing, rotary_dim, by_angle = _pairs(matrices)
    hidden = call.arguments["hidden_states"]
    query, key = (taps[i].tap(head_dim) for i in _query_and_key(call))
    layout = RopeLayout(hidden.shape[-1], head_dim, rotary_dim, pairing, query, key, None)
    return replace(layout, turns=_find_turns(call, layout, by_angle))


# --- watching -----------------------------------------------------------------------------------


def _length(model: nn.Module) -> int:
    sizes = {size for parameter in model.parameters() for size in parameter.shape}
    config = getattr(model, "config", None)
    if config is not None:
        sizes |= {value for value in vars(config.get_text_config()).values() if type(value) is int}
    return next(length for length in _LENGTHS if length not in sizes)


def _calls(model: nn.Module, length: int) -> dict[str, _Call]:
    """Runs the model over `length` tokens; the calls of its modules that rotate, by name."""
    calls: dict[str, _Call] = {}
    running: list[tuple[str, _Call]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            running.append((name, _Call(module, args, kwargs)))

        return hook

    def leave(*_: Any) -> None:
        running.pop()

    def note(rotation: _Rotation) -> None:
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
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
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
) -> _Rotation:
    """Tells the states from the angles: those are first, and have heads (four axes)."""
    named = dict(kwargs)
    positional = list(args)
    for name in names[len(positional) :]:  # states given by keyword become positional
        if isinstance(named.get(name), Tensor) and named[name].ndim == 4:
            positional.append(named.pop(name))
    states = []
    while positional and isinstance(positional[0], Tensor) and positional[0].ndim == 4:
        states.append(positional.pop(0))
    return _Rotation(function, states, tuple(positional), named)


# --- the last modules before rotation -----------------------------------------------------------


class _Found(NamedTuple):
    """A submodule whose outputs arrive at the rotation, and where each head begins in them."""

    module: str
    axes: Any
    starts: list[int]  # of the heads, among the features of one token
    features: int

    def tap(self, head_dim: int) -> Tap:
        heads = len(self.starts)
        if self.axes != "flat":
            return Tap(self.module, self.axes, heads)
        for groups in (n for n in range(1, heads + 1) if heads % n == self.features % n == 0):
            width, each, first = self.features // groups, heads // groups, self.starts[0]
            if self.starts == [
                group * width + first + head * head_dim
                for group in range(groups)
                for head in range(each)
            ]:
                return Tap(self.module, "flat", heads, groups, first)
        raise CannotMeasureError(f"lays its heads out irregularly in {self.module}")


def _find_taps(call: _Call, length: int) -> list[_Found]:
    """The submodules that the query and the key come from."""
    found: list[_Found | None] = [None, None]
    for name in _submodules_before_rotation(call):
        states, shape = _with_numbered_output(call, name)
        for i, state in enumerate(states):
            if (match := _match(name, shape, state, length)) is not None:
                found[i] = match
    for which, match in zip(("queries", "keys"), found, strict=True):
        if match is None:
            raise CannotMeasureError(
                f"computes its {which} from several modules, or changes them between the last "
                "module and the rotation"
            )
    return [match for match in found if match is not None]


def _submodules_before_rotation(call: _Call) -> list[str]:
    """Names of the attention's submodules in the order in which they run, up to the rotation."""
    names: list[str] = []
    with ExitStack() as stack:
        for name, module in call.module.named_modules():
            if name:
                handle = module.register_forward_hook(lambda *_, name=name: names.append(name))
                stack.callback(handle.remove)
        _rotated_states(call)
    return names


def _with_numbered_output(call: _Call, name: str) -> tuple[list[Tensor], torch.Size]:
    """The states before rotation where submodule `name` puts out 0, 1, 2, ...; its shape."""
    shapes: list[torch.Size] = []

    def number(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        shapes.append(output.shape)
        return torch.arange(output.numel(), device=output.device).double().view(output.shape)

    handle = call.module.get_submodule(name).register_forward_hook(number)
    try:
        return _rotated_states(call), shapes[0] if len(shapes) == 1 else torch.Size()
    except RuntimeError:  # another dtype in the middle of the module: not the last before rotation
        return [], torch.Size()
    finally:
        handle.remove()


def _rotated_states(call: _Call) -> list[Tensor]:
    """Runs the attention module again, up to its last rotation; the states it was to rotate."""
    states: list[Tensor] = []

    def note(rotation: _Rotation) -> None:
        states.extend(rotation.states)
        if len(states) >= len(call.states):
            raise _StopForward

    with torch.no_grad(), _watched_rotation(call.module, note), suppress(_StopForward):
        call.module(*call.args, **call.kwargs)
    return states


def _query_and_key(call: _Call) -> tuple[int, int]:
    """Which of the two states is which: only a key at position 0 acts on later positions."""
    plain = _attention_output(call, None)
    is_key = [bool((_attention_output(call, i) != plain)[:, 1:].any()) for i in (0, 1)]
    if is_key[0] == is_key[1]:
        raise CannotMeasureError("does not attend with its rotated queries and keys causally")
    return (1, 0) if is_key[0] else (0, 1)


def _attention_output(call: _Call, changed: int | None) -> Tensor:
    """(b, l, ...), with one of the states to rotate changed at position 0."""
    seen = 0

    def note(rotation: _Rotation) -> list[Tensor] | None:
        nonlocal seen
        states = list(rotation.states)
        if changed is not None and seen <= changed < seen + len(states):
            states[changed - seen] = state = states[changed - seen].clone()
            by_position = state if state.shape[1] == length else state.transpose(1, 2)
            by_position[:, 0] = by_position[:, 0].flip(-1) + 3.0
        seen += len(states)
        return states

    length = _positions(call)
    with torch.no_grad(), _watched_rotation(call.module, note):
        output = call.module(*call.args, **call.kwargs)
    return output if isinstance(output, Tensor) else output[0]


def _match(name: str, shape: torch.Size, state: Tensor, length: int) -> _Found | None:
    """Where the numbers of an output of `shape` arrived in `state`, None where they did not."""
    if state.dtype != torch.float64 or len(shape) not in (3, 4) or shape[0] != 1:
        return None
    heads = state[0] if state.shape[1] == length else state[0].transpose(0, 1)  # (l, heads, w)
    if len(shape) == 3:
        axes, numbers = "flat", torch.arange(shape.numel()).view(shape)[0]
    elif shape[1] == length:
        axes, numbers = "length_first", torch.arange(shape.numel()).view(shape)[0].flatten(1)
    else:
        axes = "heads_first"
        numbers = torch.arange(shape.numel()).view(shape)[0].transpose(0, 1).flatten(1)
    if numbers.shape[0] != length:
        return None
    where = {number: feature for feature, number in enumerate(numbers[1].tolist())}
    if any(number not in where for number in heads[1].flatten().tolist()):
        return None
    features = [[where[number] for number in head] for head in heads[1].tolist()]
    if any(head != list(range(head[0], head[0] + len(head))) for head in features):
        raise CannotMeasureError(f"lays a head's dimensions out irregularly in {name}")
    starts = list(dict.fromkeys(head[0] for head in features))  # Falcon repeats its keys
    return _Found(name, axes, starts, numbers.shape[1])


def _head_dim(module: nn.Module, taps: list[_Found], width: int) -> int:
    """The module's own, where the heads follow one another in it; else what is rotated of it."""
    for name in ("head_dim", "head_size"):
        size = getattr(module, name, None)
        starts = [start for tap in taps for start in tap.starts]
        if isinstance(size, int) and size >= width and all(start % size == 0 for start in starts):
            return size
    return width


# --- the rotation -------------------------------------------------------------------------------


def _matrices(rotation: _Rotation, length: int) -> Tensor:
    """(l, w, w): what the rotation does to the dimensions of a head, at each position.

    Where the model also changes their order (as DeepSeek does), the order is put back.
    """
    states = rotation.states
    width = states[0].shape[-1]
    unit = torch.eye(width, dtype=torch.float64, device=states[0].device)
    shape = [width, 1, 1, width]
    units = [unit.view(shape).expand(width, *state.shape[1:]) for state in states]
    rotated = rotation.of(units)[0].double()
    by_position = rotated[:, :, 0] if rotated.shape[1] == length else rotated[:, 0]
    matrices = by_position.permute(1, 2, 0).cpu()  # (l, out, in)
    start = matrices[0]
    order = start.abs().argmax(dim=0)  # of input i, at position 0: nothing is turned yet
    if len(set(order.tolist())) != width:
        raise CannotMeasureError("does not start to rotate at position 0")
    return matrices[:, order, :]


def _pairs(matrices: Tensor) -> tuple[Pairing, int, list[tuple[int, int]]]:
    """(pairing, ρ, the pairs in order of their index), from the rotation at each position."""
    width = matrices.shape[-1]
    diagonal = torch.eye(width, dtype=torch.bool)
    strength = matrices.abs().amax(dim=0).masked_fill(diagonal, 0)
    partner = [int(row.argmax()) if row.max() > 0 else None for row in strength]
    rotated = [i for i, j in enumerate(partner) if j is not None]
    rho = len(rotated)
    if int((strength > 0).sum()) != rho or rotated != list(range(rho)) or rho < 2:
        raise CannotMeasureError("rotates other dimensions than the first ones of a head")
    half = rho // 2
    pairs = {
        "halves": [(i, i + half) for i in range(half)],
        "interleaved": [(2 * i, 2 * i + 1) for i in range(half)],
    }
    for pairing, expected in pairs.items():
        if all(partner[i] == j and partner[j] == i for i, j in expected):
            angles = [torch.atan2(matrices[1, j, i], matrices[1, i, i]).abs() for i, j in expected]
            if any(later > angle + _TOLERANCE for angle, later in pairwise(angles)):
                raise CannotMeasureError("does not turn its pairs slower from first to last")
            return pairing, rho, expected  # type: ignore[return-value]
    raise CannotMeasureError("pairs dimensions in another way than i, i + ρ/2 or 2i, 2i + 1")


def _find_turns(call: _Call, layout: RopeLayout, pairs: list[tuple[int, int]]) -> Turns | None:
    """How to get the angles that the module turned by; None where they cannot be had."""
    matrices = _matrices(call.rotations[0], _positions(call))
    real = [i for i, _ in pairs]
    imaginary = [j for _, j in pairs]
    cos, sin = matrices[:, real, real], matrices[:, imaginary, real]
    for source in get_args(get_type_hints(Turns)["source"]):
        for stride in (1, 2):
            for sign in (1, -1):
                turns = Turns(source, stride, sign)
                try:
                    given = turns_of(replace(layout, turns=turns), call.module, call.arguments)
                except (LookupError, TypeError, AttributeError, RuntimeError, ValueError):
                    continue
                if _equal(given[0][0][:, real], cos) and _equal(given[1][0][:, real], sin):
                    return turns
    return None


def _positions(call: _Call) -> int:
    return int(call.arguments["hidden_states"].shape[1])


def _equal(left: Tensor, right: Tensor) -> bool:
    left = left.double().cpu()
    return left.shape == right.shape and bool(((left - right).abs() < _TOLERANCE).all())
