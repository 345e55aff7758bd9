"""`rosa.ops.modulation` as Triton kernels: one launch forward and one backward.

Imported only where Triton is installed and asked for (ROSA_OPS=triton).
"""

# ruff: noqa: N803  # constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosa.ops.modulation import PairModulation

_BLOCK = 256


@triton.jit
def _places(heads, in_group, tokens, n, length, angles, strides, BLOCK: tl.constexpr):
    """Of BLOCK of all (token, head, pair): which exist, and their offsets in z, in the signal and
    in cos."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair, head, token = i % n, i // n % heads, i // n // heads
    of_batch, of_length, of_group, of_head, of_pair = strides
    z = token // length * of_batch + token % length * of_length
    z += head // in_group * of_group + head % in_group * of_head + pair * of_pair
    return token < tokens, z, i // n * 2 * n + pair, token % angles * n + pair


@triton.jit
def _load_pair(pointer, place, apart, mask, WIDE: tl.constexpr):
    first = tl.load(pointer + place, mask=mask, other=0).to(WIDE)
    return first, tl.load(pointer + place + apart, mask=mask, other=0).to(WIDE)


@triton.jit
def _store_pair(pointer, place, apart, first, second, mask):
    tl.store(pointer + place, first.to(pointer.dtype.element_ty), mask=mask)
    tl.store(pointer + place + apart, second.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _silu(x, ACTIVATE: tl.constexpr):
    return x * tl.sigmoid(x) if ACTIVATE else x


@triton.jit
def _silu_backward(gradient, x, ACTIVATE: tl.constexpr):
    sigmoid = tl.sigmoid(x)
    return gradient * sigmoid * (1 + x * (1 - sigmoid)) if ACTIVATE else gradient


@triton.jit
def _load_angles(cos, sin, place, n, mask, ROTATED: tl.constexpr, WIDE: tl.constexpr):
    """c and s of (c; -s, s), which are 1 and 0 without a rotation."""
    if ROTATED:
        # Of sin (2, n) the second row: the rows before it count twice, and one of its own.
        row = place // n * n
        c = tl.load(cos + place, mask=mask, other=0).to(WIDE)
        s = tl.load(sin + place + row + n, mask=mask, other=0).to(WIDE)
    else:
        c, s = 1.0, 0.0
    return c, s


@triton.jit
def _rotate(a, b, c, s, ROTATED: tl.constexpr):
    if ROTATED:
        first, second = c * a - s * b, s * a + c * b
    else:
        first, second = c * a, c * b
    return first, second


@triton.jit
def _forward_kernel(
    z, source, kept, cos, sin, inverse_cos, inverse_sin,
    heads, in_group, strides, apart, tokens, n, length, angles,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr,
    ALPHA: tl.constexpr, ROTATED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_angle = _places(
        heads, in_group, tokens, n, length, angles, strides, BLOCK
    )
    a, b = _load_pair(z, at, apart, mask, WIDE)
    p_1, p_2 = _load_pair(source, of_signal, n, mask, WIDE)
    c, s = _load_angles(cos, sin, of_angle, n, mask, ROTATED, WIDE)
    u, v = _rotate(a, b, c, s, ROTATED)
    if KEEP:
        _store_pair(kept, of_signal, n, u, v, mask)
    c, s = _load_angles(inverse_cos, inverse_sin, of_angle, n, mask, ROTATED, WIDE)
    scale = tl.full((BLOCK,), 1.0 if ROTATED else ALPHA, WIDE)
    da, db = _rotate(_silu(p_1, ACTIVATE) * u, _silu(p_2, ACTIVATE) * v, c, s, ROTATED)
    _store_pair(z, at, apart, a + scale * da, b + scale * db, mask)


@triton.jit
def _backward_kernel(
    g, source, kept, to_source, cos, sin, inverse_cos, inverse_sin,
    heads, in_group, strides, apart, tokens, n, length, angles,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr, WRITE: tl.constexpr,
    ALPHA: tl.constexpr, ROTATED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_angle = _places(
        heads, in_group, tokens, n, length, angles, strides, BLOCK
    )
    a, b = _load_pair(g, at, apart, mask, WIDE)
    p_1, p_2 = _load_pair(source, of_signal, n, mask, WIDE)
    c, s = _load_angles(cos, sin, of_angle, n, mask, ROTATED, WIDE)
    inverse_c, inverse_s = _load_angles(inverse_cos, inverse_sin, of_angle, n, mask, ROTATED, WIDE)
    scale = tl.full((BLOCK,), 1.0 if ROTATED else ALPHA, WIDE)
    u, v = _rotate(a, b, inverse_c, -inverse_s, ROTATED)  # transposed
    if KEEP:
        z_1, z_2 = _load_pair(kept, of_signal, n, mask, WIDE)
        to_1 = _silu_backward(scale * u * z_1, p_1, ACTIVATE)
        to_2 = _silu_backward(scale * v * z_2, p_2, ACTIVATE)
        _store_pair(to_source, of_signal, n, to_1, to_2, mask)
    if WRITE:
        da, db = _rotate(_silu(p_1, ACTIVATE) * u, _silu(p_2, ACTIVATE) * v, c, -s, ROTATED)
        _store_pair(g, at, apart, a + scale * da, b + scale * db, mask)


def modulate_pairs_(z: Tensor, by: PairModulation, keep: bool) -> Tensor | None:
    """`rosa.ops.modulation.modulate_pairs_`."""
    kept = torch.empty(z.shape, dtype=z.dtype, device=z.device) if keep else None
    if z.numel():
        grid, arguments, constants = _launch(z, by)
        _forward_kernel[grid](
            z, by.source.contiguous(), z if kept is None else kept, *arguments,
            KEEP=keep, **constants,
        )  # fmt: skip
    return kept


def modulate_pairs_backward(
    gradient: Tensor, kept: Tensor | None, by: PairModulation, write: bool
) -> Tensor | None:
    """`rosa.ops.modulation.modulate_pairs_backward`."""
    source = by.source.contiguous()
    to_source = None if kept is None else torch.empty_like(source)
    if gradient.numel():
        grid, arguments, constants = _launch(gradient, by)
        absent = gradient  # a pointer that is not read or written
        _backward_kernel[grid](
            gradient, source, absent if kept is None else kept,
            absent if to_source is None else to_source, *arguments,
            KEEP=kept is not None, WRITE=write, **constants,
        )  # fmt: skip
    return to_source


def _launch(z: Tensor, by: PairModulation) -> tuple[tuple[int], tuple[Any, ...], dict[str, Any]]:
    """The grid, the arguments and the constants that both kernels take for z."""
    source, activate, alpha, rotation = by
    batch, length, groups, in_group, _, n = z.shape
    *strides, apart, of_pair = z.stride()
    angles = batch * length if rotation is not None and len(rotation.cos) == batch else length
    sizes = (groups * in_group, in_group, (*strides, of_pair), apart)
    constants = {
        "ACTIVATE": activate,
        "ALPHA": alpha,  # a constant: an argument would be rounded to float32
        "ROTATED": rotation is not None,
        "WIDE": tl.float64 if torch.float64 in (z.dtype, source.dtype) else tl.float32,
        "BLOCK": _BLOCK,
    }
    grid = (triton.cdiv(z.numel() // 2, _BLOCK),)
    return grid, (*(rotation or (z,) * 4), *sizes, batch * length, n, length, angles), constants
