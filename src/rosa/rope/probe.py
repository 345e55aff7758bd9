"""Detects the RoPE layout of every attention module of a model that rotates, by running it.

A few tokens go through the model with its rotation functions intercepted; then each attention
module runs again on the input that it got, up to its rotation:

1. The outputs of its submodules are replaced, one at a time, by the numbers 0, 1, 2, ... Where they
   arrive at the rotation unchanged (or all multiplied by one factor), in whatever order, the
   submodule is the last before rotation, and the order says which of its outputs is which dimension
   of which head.
2. The rotation function rotates unit vectors. The result says which dimensions form pairs, which
   are not rotated, by what angle each pair rotates, and which element of cos and sin does it.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise, product
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.rope.cos_sin import cos_sin_of
from rosa.rope.layout import CosSinSource, HookPoint, Pairing, RopeLayout
from rosa.rope.trace import (
    AttentionCall,
    DetectionError,
    attention_output,
    rotating_calls,
    states_before_rotation,
)

_TOLERANCE = 1e-2  # of cos, sin and angles: bfloat16 rounds the first two by 4e-3


def probe_layouts(model: nn.Module) -> dict[str, RopeLayout]:
    """The layout of each attention module that rotates, by name; empty where none is seen to.

    Raises DetectionError where a module rotates in a way that a layout cannot describe, and where
    the model does not run on token ids alone.
    """
    calls = rotating_calls(model)
    # A module that attends with an earlier one's keys (Gemma4) rotates its queries alone.
    complete = {name: call for name, call in calls.items() if len(call.states) != 1}
    return {name: _layout(call) for name, call in (complete or calls).items()}


def _layout(call: AttentionCall) -> RopeLayout:
    states = call.states
    if len(states) != 2:
        times = "once" if len(states) == 1 else f"{len(states)} times"
        raise DetectionError(f"rotates {times} where a query and a key are rotated")
    found = _find_hook_points(call)
    head_dim = _head_dim(call.module, found, states[0].shape[-1])
    matrices = _matrices(call)
    pairing, span, pairs = _pairs(matrices)
    hidden_size = call.arguments["hidden_states"].shape[-1]
    query, key = (found[i].hook_point(head_dim) for i in _query_and_key(call))
    layout = RopeLayout(hidden_size, head_dim, 2 * len(pairs), pairing, query, key, None, span)
    return replace(layout, cos_sin=_find_cos_sin(call, layout, matrices, pairs))


class _Found(NamedTuple):
    """A submodule whose outputs arrive at the rotation, and where each head begins in them."""

    module: str
    axes: Any
    starts: list[int]  # of the heads, among the features of one token
    features: int

    def hook_point(self, head_dim: int) -> HookPoint:
        heads = len(self.starts)
        if self.axes != "flat":
            return HookPoint(self.module, self.axes, heads)
        for groups in (n for n in range(1, heads + 1) if heads % n == self.features % n == 0):
            width, each, first = self.features // groups, heads // groups, self.starts[0]
            if self.starts == [
                group * width + first + head * head_dim
                for group in range(groups)
                for head in range(each)
            ]:
                return HookPoint(self.module, "flat", heads, groups, first)
        raise DetectionError(f"orders its heads irregularly in {self.module}")


def _find_hook_points(call: AttentionCall) -> list[_Found]:
    """The submodules that the query and the key come from."""
    found: dict[int, _Found] = {}
    for name in _submodules_before_rotation(call):
        states, shape = _with_numbered_output(call, name)
        for i, state in enumerate(states):
            if (match := _match(name, shape, state, call.length)) is not None:
                found[i] = match
    for i, which in enumerate(("queries", "keys")):
        if i not in found:
            raise DetectionError(
                f"computes its {which} from several modules, or changes them between the last "
                "module and the rotation"
            )
    return [found[0], found[1]]


def _submodules_before_rotation(call: AttentionCall) -> list[str]:
    """Names of the attention's submodules in the order in which they run, up to the rotation."""
    names: list[str] = []
    with ExitStack() as stack:
        for name, module in call.module.named_modules():
            if name:
                handle = module.register_forward_hook(lambda *_, name=name: names.append(name))
                stack.callback(handle.remove)
        states_before_rotation(call)
    return names


def _with_numbered_output(call: AttentionCall, name: str) -> tuple[list[Tensor], torch.Size]:
    """The states before rotation where submodule `name` outputs 0, 1, 2, ...; its shape."""
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


def _query_and_key(call: AttentionCall) -> tuple[int, int]:
    """Which of the two states is which: only a key at position 0 acts on later positions."""
    plain = attention_output(call, None)
    is_key = [bool((attention_output(call, i) != plain)[:, 1:].any()) for i in (0, 1)]
    if is_key[0] == is_key[1]:
        raise DetectionError("does not attend with its rotated queries and keys causally")
    return (1, 0) if is_key[0] else (0, 1)


def _match(name: str, shape: torch.Size, state: Tensor, length: int) -> _Found | None:
    """Where the numbers of an output of `shape` arrived in `state`, None where they did not."""
    if state.dtype != torch.float64 or len(shape) not in (3, 4) or shape[0] != 1:
        return None
    heads = state[0] if state.shape[1] == length else state[0].transpose(0, 1)  # (l, heads, w)
    numbers = torch.arange(shape.numel()).view(shape)[0]
    axes = "flat" if len(shape) == 3 else "length_first"
    if len(shape) == 4 and shape[1] != length:
        axes, numbers = "heads_first", numbers.transpose(0, 1)
    numbers = numbers.flatten(1)  # (l, features)
    if numbers.shape[0] != length:
        return None
    where = {number: feature for feature, number in enumerate(numbers[1].tolist())}
    arrived = (heads[1] / _factor(heads[1])).round(decimals=6)
    if any(number not in where for number in arrived.flatten().tolist()):
        return None
    features = [[where[number] for number in head] for head in arrived.tolist()]
    if any(head != list(range(head[0], head[0] + len(head))) for head in features):
        raise DetectionError(f"orders a head's dimensions irregularly in {name}")
    starts = list(dict.fromkeys(head[0] for head in features))  # Falcon repeats its keys
    return _Found(name, axes, starts, numbers.shape[1])


def _factor(numbers: Tensor) -> Tensor:
    """The factor by which consecutive numbers (heads, w) were multiplied, 1 if they were not.

    RoAE multiplies too, so that a factor in between changes nothing (LongCat, Falcon-H1).
    """
    steps = numbers.diff(dim=-1)
    factor = steps.flatten()[0]
    return factor if factor != 0 and torch.allclose(steps, factor) else torch.ones_like(factor)


def _head_dim(module: nn.Module, found: list[_Found], width: int) -> int:
    """The module's own, where the heads follow one another in it; else what is rotated of it."""
    starts = [start for each in found for start in each.starts]
    for name in ("head_dim", "head_size"):
        size = getattr(module, name, None)
        if isinstance(size, int) and size >= width and all(start % size == 0 for start in starts):
            return size
    return width


def _matrices(call: AttentionCall) -> Tensor:
    """The rotation at each position as matrices (l, w, w) on the dimensions of a head.

    Where the model also changes their order (as DeepSeek does), the order is put back.
    """
    rotation = call.rotations[0]
    width = rotation.states[0].shape[-1]
    unit = torch.eye(width, dtype=torch.float64, device=rotation.states[0].device)
    unit = unit.view(width, 1, 1, width)
    rotated = rotation.rotate([unit.expand(width, *s.shape[1:]) for s in rotation.states])
    rotated = (rotated[0] if isinstance(rotated, tuple) else rotated).double()
    by_position = rotated[:, :, 0] if rotated.shape[1] == call.length else rotated[:, 0]
    matrices = by_position.permute(1, 2, 0).cpu()  # (l, out, in)
    order = matrices[0].abs().argmax(dim=0)  # of input i, at position 0: nothing is rotated yet
    if len(set(order.tolist())) != width:
        raise DetectionError("does not start to rotate at position 0")
    return matrices[:, order, :]


def _pairs(matrices: Tensor) -> tuple[Pairing, int | None, list[tuple[int, int]]]:
    """(pairing, span, the pairs in order of their index), from the rotation at each position."""
    diagonal = torch.eye(matrices.shape[-1], dtype=torch.bool)
    strength = matrices.abs().amax(dim=0).masked_fill(diagonal, 0)
    partner = {i: int(row.argmax()) for i, row in enumerate(strength) if row.max() > 0}
    half = len(partner) // 2
    apart = partner.get(0, 0)  # of the two dimensions of a pair, where they are halves
    halves = [(i, i + apart) for i in range(half)]
    interleaved = [(2 * i, 2 * i + 1) for i in range(half)]
    if int((strength > 0).sum()) != len(partner) or half < 1 or apart == 0:
        raise DetectionError("rotates other dimensions than the first ones of a head")
    pairing: Pairing
    for pairing, pairs in (("halves", halves), ("interleaved", interleaved)):
        if partner == {**dict(pairs), **{j: i for i, j in pairs}}:
            angles = [torch.atan2(matrices[1, j, i], matrices[1, i, i]).abs() for i, j in pairs]
            if any(later > angle + _TOLERANCE for angle, later in pairwise(angles)):
                raise DetectionError("does not order its pairs from high to low frequency")
            return pairing, 2 * apart if pairing == "halves" and apart != half else None, pairs
    raise DetectionError("pairs dimensions in another way than i, i + ρ/2 or 2i, 2i + 1")


def _find_cos_sin(
    call: AttentionCall, layout: RopeLayout, matrices: Tensor, pairs: list[tuple[int, int]]
) -> CosSinSource | None:
    """Where the cos and sin of the module's rotation come from; None where they are not found."""
    real, imaginary = (list(dims) for dims in zip(*pairs, strict=True))
    cos, sin = matrices[:, real, real], matrices[:, imaginary, real]
    orders = ((1, False), (2, False), (1, True))
    for origin in get_args(get_type_hints(CosSinSource)["origin"]):
        for (stride, by_pair), sign in product(orders, (1, -1)):
            source = CosSinSource(origin, stride, sign, by_pair)
            try:
                given = cos_sin_of(replace(layout, cos_sin=source), call.module, call.arguments)
            except (LookupError, TypeError, AttributeError, RuntimeError, ValueError, RosaError):
                continue
            if all(
                turn.shape[1] == len(wanted)
                and torch.allclose(turn[0, :, real].double().cpu(), wanted, 0, _TOLERANCE)
                for turn, wanted in zip(given, (cos, sin), strict=True)
            ):
                return source
    return None
