"""`rosa.ops.plain` as Triton kernels, one launch forward and one backward.

Both directions make the signal, turn, multiply and turn back; the functions that do so are written
once and take part in both kernels. Imported only where Triton is there.
"""

# ruff: noqa: N803  # constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosa.ops.turning import Turning

_BLOCK = 256


@triton.jit
def _places(total, n, heads, in_group, length, angles, strides, BLOCK: tl.constexpr):
    """Of BLOCK of all (token, head, pair): which exist, and where they are in z, in the signal and
    in the turning's cos."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair, head, token = i % n, i // n % heads, i // n // heads
    of_batch, of_length, of_group, of_head, of_pair = strides
    z = token // length * of_batch + token % length * of_length
    z += head // in_group * of_group + head % in_group * of_head + pair * of_pair
    return i < total, z, i // n * 2 * n + pair, token % angles * n + pair


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
def _through_silu(gradient, x, ACTIVATE: tl.constexpr):
    sigmoid = tl.sigmoid(x)
    return gradient * sigmoid * (1 + x * (1 - sigmoid)) if ACTIVATE else gradient


@triton.jit
def _angles(cos, sin, place, n, mask, TURNED: tl.constexpr, WIDE: tl.constexpr):
    """c and s of (c; -s, s), which are 1 and 0 where nothing turns."""
    if TURNED:
        # Of sin (2, n) the second row: the rows before it count twice, and one of its own.
        row = place // n * n
        c = tl.load(cos + place, mask=mask, other=0).to(WIDE)
        s = tl.load(sin + place + row + n, mask=mask, other=0).to(WIDE)
    else:
        c, s = 1.0, 0.0
    return c, s


@triton.jit
def _turned(a, b, c, s, TURNED: tl.constexpr):
    if TURNED:
        first, second = c * a - s * b, s * a + c * b
    else:
        first, second = c * a, c * b
    return first, second


@triton.jit
def _forward_kernel(
    z, source, kept, cos, sin, back_cos, back_sin,
    total, n, heads, in_group, length, angles, strides, apart,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, ACTIVATE: tl.constexpr, KEEP: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_turn = _places(
        total, n, heads, in_group, length, angles, strides, BLOCK
    )
    a, b = _load_pair(z, at, apart, mask, WIDE)
    p_1, p_2 = _load_pair(source, of_signal, n, mask, WIDE)
    c, s = _angles(cos, sin, of_turn, n, mask, TURNED, WIDE)
    u, v = _turned(a, b, c, s, TURNED)
    if KEEP:
        _store_pair(kept, of_signal, n, u, v, mask)
    c, s = _angles(back_cos, back_sin, of_turn, n, mask, TURNED, WIDE)
    scale = tl.full((BLOCK,), 1.0 if TURNED else ALPHA, WIDE)
    da, db = _turned(_silu(p_1, ACTIVATE) * u, _silu(p_2, ACTIVATE) * v, c, s, TURNED)
    _store_pair(z, at, apart, a + scale * da, b + scale * db, mask)


@triton.jit
def _backward_kernel(
    g, source, kept, to_source, cos, sin, back_cos, back_sin,
    total, n, heads, in_group, length, angles, strides, apart,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, ACTIVATE: tl.constexpr, KEEP: tl.constexpr,
    WRITE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_turn = _places(
        total, n, heads, in_group, length, angles, strides, BLOCK
    )
    a, b = _load_pair(g, at, apart, mask, WIDE)
    p_1, p_2 = _load_pair(source, of_signal, n, mask, WIDE)
    c, s = _angles(cos, sin, of_turn, n, mask, TURNED, WIDE)
    back_c, back_s = _angles(back_cos, back_sin, of_turn, n, mask, TURNED, WIDE)
    scale = tl.full((BLOCK,), 1.0 if TURNED else ALPHA, WIDE)
    u, v = _turned(a, b, back_c, -back_s, TURNED)  # transposed
    if KEEP:
        z_1, z_2 = _load_pair(kept, of_signal, n, mask, WIDE)
        to_1 = _through_silu(scale * u * z_1, p_1, ACTIVATE)
        to_2 = _through_silu(scale * v * z_2, p_2, ACTIVATE)
        _store_pair(to_source, of_signal, n, to_1, to_2, mask)
    if WRITE:
        da, db = _turned(_silu(p_1, ACTIVATE) * u, _silu(p_2, ACTIVATE) * v, c, -s, TURNED)
        _store_pair(g, at, apart, a + scale * da, b + scale * db, mask)


def correct(
    z: Tensor, source: Tensor, alpha: float, turning: Turning | None, activate: bool, keep: bool
) -> Tensor | None:
    """`rosa.ops.plain.correct`."""
    source = source.contiguous()
    kept = torch.empty(z.shape, dtype=z.dtype, device=z.device) if keep else None
    unused = z
    if z.numel():
        arguments, constants = _arguments(z, source, alpha, turning)
        _forward_kernel[(triton.cdiv(z.numel() // 2, _BLOCK),)](
            z, source, unused if kept is None else kept, *arguments,
            ACTIVATE=activate, KEEP=keep, **constants,
        )  # fmt: skip
    return kept


def propagate(
    g: Tensor,
    kept: Tensor | None,
    source: Tensor,
    alpha: float,
    turning: Turning | None,
    activate: bool,
    write: bool,
) -> Tensor | None:
    """`rosa.ops.plain.propagate`."""
    contiguous = source.contiguous()
    to_source = None if kept is None else torch.empty_like(contiguous)
    unused = g
    if g.numel():
        arguments, constants = _arguments(g, contiguous, alpha, turning)
        _backward_kernel[(triton.cdiv(g.numel() // 2, _BLOCK),)](
            g, contiguous, unused if kept is None else kept,
            unused if to_source is None else to_source, *arguments,
            ACTIVATE=activate, KEEP=kept is not None, WRITE=write, **constants,
        )  # fmt: skip
    return to_source


def _arguments(
    z: Tensor, source: Tensor, alpha: float, turning: Turning | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels take after their tensors, and their constants; z (b, l, g, h/g, 2, n)."""
    batch, length, groups, in_group, _, n = z.shape
    *strides, apart, of_pair = z.stride()
    turns = turning or (z, z, z, z)
    angles = batch * length if turning is not None and len(turning.cos) == batch else length
    wide = torch.promote_types(z.dtype, source.dtype)
    constants = {
        "ALPHA": alpha,  # a constant: an argument would be rounded to float32
        "TURNED": turning is not None,
        "WIDE": tl.float64 if wide == torch.float64 else tl.float32,
        "BLOCK": _BLOCK,
    }
    sizes = z.numel() // 2, n, groups * in_group, in_group, length, angles
    return (*turns, *sizes, (*strides, of_pair), apart), constants
