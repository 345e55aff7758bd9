"""Measures how a model rotates by watching it: the layout of every attention module that does.

One short text goes through the model, with its rotation function watched; then each attention
module is called again on the input that it got, up to its rotation:

1. The outputs of its submodules are replaced, one at a time, by the numbers 0, 1, 2, ... Where they
   arrive at the rotation unchanged (or all multiplied by one factor), in whatever order, the
   submodule is the last before rotation, and the order says which of its outputs is which dimension
   of which head.
2. The rotation function turns unit vectors. What becomes of them says which dimensions form pairs,
   which are not rotated, by what angle each pair turns, and which element of cos and sin does it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.rope.layout import Pairing, RopeLayout, Tap, Turns
from rosa.rope.tracing import (
    Call,
    CannotMeasureError,
    Rotation,
    attention_output,
    calls_that_rotate,
    states_before_rotation,
    text_length,
)
from rosa.rope.turns import turns_of

__all__ = ["CannotMeasureError", "measure"]

_TOLERANCE = 1e-2  # of cos, sin and angles: bfloat16 rounds the first two by 4e-3


def measure(model: nn.Module) -> dict[str, RopeLayout]:
    """The layout of each attention module that rotates, by name; empty where none is seen to.

    Raises CannotMeasureError where a module rotates in a way that a layout cannot describe, and
    where the model does not run on token ids alone.
    """
    length = text_length(model)
    calls = calls_that_rotate(model, length)
    # A module that attends with an earlier one's keys (Gemma4) turns its queries alone.
    complete = {name: call for name, call in calls.items() if len(call.states) != 1}
    return {name: _layout(call, length) for name, call in (complete or calls).items()}


def _layout(call: Call, length: int) -> RopeLayout:
    states = call.states
    if len(states) != 2:
        times = "once" if len(states) == 1 else f"{len(states)} times"
        raise CannotMeasureError(f"rotates {times} where a query and a key are turned")
    taps = _find_taps(call, length)
    width = states[0].shape[-1]
    head_dim = _head_dim(call.module, taps, width)
    matrices = _matrices(call.rotations[0], length)
    pairing, span, by_angle = _pairs(matrices)
    rotary_dim = 2 * len(by_angle)
    hidden = call.arguments["hidden_states"]
    query, key = (taps[i].tap(head_dim) for i in _query_and_key(call))
    layout = RopeLayout(hidden.shape[-1], head_dim, rotary_dim, pairing, query, key, None, span)
    return replace(layout, turns=_find_turns(call, layout, by_angle))


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


def _find_taps(call: Call, length: int) -> list[_Found]:
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


def _submodules_before_rotation(call: Call) -> list[str]:
    """Names of the attention's submodules in the order in which they run, up to the rotation."""
    names: list[str] = []
    with ExitStack() as stack:
        for name, module in call.module.named_modules():
            if name:
                handle = module.register_forward_hook(lambda *_, name=name: names.append(name))
                stack.callback(handle.remove)
        states_before_rotation(call)
    return names


def _with_numbered_output(call: Call, name: str) -> tuple[list[Tensor], torch.Size]:
    """The states before rotation where submodule `name` puts out 0, 1, 2, ...; its shape."""
    shapes: list[torch.Size] = []

    def number(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        shapes.append(output.shape)
        return torch.arange(output.numel(), device=output.device).double().view(output.shape)

    handle = call.module.get_submodule(name).register_forward_hook(number)
    try:
        return states_before_rotation(call), shapes[0] if len(shapes) == 1 else torch.Size()
    except RuntimeError:  # another dtype in the middle of the module: not the last before rotation
        return [], torch.Size()
    finally:
        handle.remove()


def _query_and_key(call: Call) -> tuple[int, int]:
    """Which of the two states is which: only a key at position 0 acts on later positions."""
    plain = attention_output(call, None)
    is_key = [bool((attention_output(call, i) != plain)[:, 1:].any()) for i in (0, 1)]
    if is_key[0] == is_key[1]:
        raise CannotMeasureError("does not attend with its rotated queries and keys causally")
    return (1, 0) if is_key[0] else (0, 1)


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
    arrived = (heads[1] / _factor(heads[1])).round(decimals=6)
    if any(number not in where for number in arrived.flatten().tolist()):
        return None
    features = [[where[number] for number in head] for head in arrived.tolist()]
    if any(head != list(range(head[0], head[0] + len(head))) for head in features):
        raise CannotMeasureError(f"lays a head's dimensions out irregularly in {name}")
    starts = list(dict.fromkeys(head[0] for head in features))  # Falcon repeats its keys
    return _Found(name, axes, starts, numbers.shape[1])


def _factor(numbers: Tensor) -> Tensor:
    """What (heads, w) consecutive numbers were multiplied with on the way, if they are that.

    RoAE multiplies too, so that a factor in between changes nothing (LongCat, Falcon-H1).
    """
    steps = numbers.diff(dim=-1)
    factor = steps.flatten()[0]
    return factor if factor != 0 and torch.allclose(steps, factor) else torch.ones_like(factor)


def _head_dim(module: nn.Module, taps: list[_Found], width: int) -> int:
    """The module's own, where the heads follow one another in it; else what is rotated of it."""
    for name in ("head_dim", "head_size"):
        size = getattr(module, name, None)
        starts = [start for tap in taps for start in tap.starts]
        if isinstance(size, int) and size >= width and all(start % size == 0 for start in starts):
            return size
    return width


# --- the rotation -------------------------------------------------------------------------------


def _matrices(rotation: Rotation, length: int) -> Tensor:
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


def _pairs(matrices: Tensor) -> tuple[Pairing, int | None, list[tuple[int, int]]]:
    """(pairing, span, the pairs in order of their index), from the rotation at each position."""
    width = matrices.shape[-1]
    diagonal = torch.eye(width, dtype=torch.bool)
    strength = matrices.abs().amax(dim=0).masked_fill(diagonal, 0)
    partner = {i: int(row.argmax()) for i, row in enumerate(strength) if row.max() > 0}
    half = len(partner) // 2
    apart = partner.get(0, 0)  # of the two dimensions of a pair, where they are halves
    halves = [(i, i + apart) for i in range(half)]
    interleaved = [(2 * i, 2 * i + 1) for i in range(half)]
    if int((strength > 0).sum()) != len(partner) or half < 1 or apart == 0:
        raise CannotMeasureError("rotates other dimensions than the first ones of a head")
    pairing: Pairing
    for pairing, pairs in (("halves", halves), ("interleaved", interleaved)):
        if partner == {**dict(pairs), **{j: i for i, j in pairs}}:
            angles = [torch.atan2(matrices[1, j, i], matrices[1, i, i]).abs() for i, j in pairs]
            if any(later > angle + _TOLERANCE for angle, later in pairwise(angles)):
                raise CannotMeasureError("does not turn its pairs slower from first to last")
            return pairing, 2 * apart if pairing == "halves" and apart != half else None, pairs
    raise CannotMeasureError("pairs dimensions in another way than i, i + ρ/2 or 2i, 2i + 1")


def _find_turns(call: Call, layout: RopeLayout, pairs: list[tuple[int, int]]) -> Turns | None:
    """How to get the angles that the module turned by; None where they cannot be had."""
    matrices = _matrices(call.rotations[0], call.length)
    real = [i for i, _ in pairs]
    imaginary = [j for _, j in pairs]
    cos, sin = matrices[:, real, real], matrices[:, imaginary, real]
    for source in get_args(get_type_hints(Turns)["source"]):
        for (stride, by_pair), sign in product(((1, False), (2, False), (1, True)), (1, -1)):
            turns = Turns(source, stride, sign, by_pair)
            try:
                given = turns_of(replace(layout, turns=turns), call.module, call.arguments)
            except (LookupError, TypeError, AttributeError, RuntimeError, ValueError, RosaError):
                continue
            if _equal(given[0][0][:, real], cos) and _equal(given[1][0][:, real], sin):
                return turns
    return None


def _equal(left: Tensor, right: Tensor) -> bool:
    left = left.double().cpu()
    return left.shape == right.shape and bool(((left - right).abs() < _TOLERANCE).all())
