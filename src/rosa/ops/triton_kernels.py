"""`rosa.ops.modulation` as Triton kernels: one launch forward and one backward for a whole output.

Both directions make the signal, turn, multiply and turn back; the functions that do so are written
once and take part in both kernels. Imported only where Triton is there.
"""

# ruff: noqa: N803  # constants of a kernel are written in capitals
# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rosa.ops.modulation import Sources
from rosa.ops.rotation import Turning

_BLOCK = 256


@triton.jit
def _places(program, heads, in_group, tokens, n, length, angles, strides, BLOCK: tl.constexpr):
    """Of BLOCK of all (token, head, pair): which exist, and where they are in z, in the signal and
    in the turning's cos."""
    i = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
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
def _forward(
    program, z, source, kept, heads, in_group, strides,
    cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_turn = _places(
        program, heads, in_group, tokens, n, length, angles, strides, BLOCK
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
def _backward(
    program, g, source, kept, to_source, heads, in_group, strides,
    cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr, WRITE: tl.constexpr,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    mask, at, of_signal, of_turn = _places(
        program, heads, in_group, tokens, n, length, angles, strides, BLOCK
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


@triton.jit
def _forward_kernel(
    blocks, z, source, kept, heads, in_group, strides,
    z_2, source_2, kept_2, heads_2, in_group_2, strides_2,
    cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr, ACTIVATE_2: tl.constexpr, KEEP_2: tl.constexpr,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The first `blocks` programs do one part, those that follow the other, if there is one."""
    program = tl.program_id(0)
    if program < blocks:
        _forward(
            program, z, source, kept, heads, in_group, strides,
            cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
            ACTIVATE, KEEP, ALPHA, TURNED, WIDE, BLOCK,
        )  # fmt: skip
    else:
        _forward(
            program - blocks, z_2, source_2, kept_2, heads_2, in_group_2, strides_2,
            cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
            ACTIVATE_2, KEEP_2, ALPHA, TURNED, WIDE, BLOCK,
        )  # fmt: skip


@triton.jit
def _backward_kernel(
    blocks, g, source, kept, to_source, heads, in_group, strides,
    g_2, source_2, kept_2, to_source_2, heads_2, in_group_2, strides_2,
    cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
    ACTIVATE: tl.constexpr, KEEP: tl.constexpr, ACTIVATE_2: tl.constexpr, KEEP_2: tl.constexpr,
    WRITE: tl.constexpr,
    ALPHA: tl.constexpr, TURNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < blocks:
        _backward(
            program, g, source, kept, to_source, heads, in_group, strides,
            cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
            ACTIVATE, KEEP, WRITE, ALPHA, TURNED, WIDE, BLOCK,
        )  # fmt: skip
    else:
        _backward(
            program - blocks, g_2, source_2, kept_2, to_source_2, heads_2, in_group_2, strides_2,
            cos, sin, back_cos, back_sin, tokens, n, length, angles, apart,
            ACTIVATE_2, KEEP_2, WRITE, ALPHA, TURNED, WIDE, BLOCK,
        )  # fmt: skip


def correct(
    parts: Sequence[Tensor],
    sources: Sources,
    alpha: float,
    turning: Turning | None,
    keep: Sequence[bool] | None = None,
) -> list[Tensor | None]:
    """`rosa.ops.modulation.correct`, for one part or two of one output."""
    kept = [
        torch.empty(z.shape, dtype=z.dtype, device=z.device) if keep and keep[i] else None
        for i, z in enumerate(parts)
    ]
    if parts[0].numel():
        tensors = [
            (z, source.contiguous(), z if kept_ is None else kept_)
            for z, (source, _), kept_ in zip(parts, sources, kept, strict=True)
        ]
        grid, arguments = _each_part(parts, tensors)
        shared, constants = _shared(parts[0], sources, alpha, turning)
        _forward_kernel[grid](*arguments, *shared, **_flags(sources, kept), **constants)
    return kept


def propagate(
    gradients: Sequence[Tensor],
    kept: Sequence[Tensor | None],
    sources: Sources,
    alpha: float,
    turning: Turning | None,
    write: bool,
) -> list[Tensor | None]:
    """`rosa.ops.modulation.propagate`, likewise."""
    contiguous = [source.contiguous() for source, _ in sources]
    to_sources = [
        None if kept_ is None else torch.empty_like(source)
        for source, kept_ in zip(contiguous, kept, strict=True)
    ]
    if gradients[0].numel():
        tensors = [
            (g, source, g if kept_ is None else kept_, g if to_source is None else to_source)
            for g, source, kept_, to_source in zip(
                gradients, contiguous, kept, to_sources, strict=True
            )
        ]
        grid, arguments = _each_part(gradients, tensors)
        shared, constants = _shared(gradients[0], sources, alpha, turning)
        _backward_kernel[grid](
            *arguments, *shared, WRITE=write, **_flags(sources, kept), **constants
        )
    return to_sources


def _each_part(
    parts: Sequence[Tensor], tensors: Sequence[tuple[Tensor, ...]]
) -> tuple[tuple[int], list[Any]]:
    """The grid, and what a kernel takes of each part; one alone stands for a second, unused."""
    blocks = [triton.cdiv(z.numel() // 2, _BLOCK) for z in parts]
    own = []
    for z, given in zip(parts, tensors, strict=True):
        *strides, _, of_pair = z.stride()
        own.append((*given, z.shape[2] * z.shape[3], z.shape[3], (*strides, of_pair)))
    return (sum(blocks),), [blocks[0], *own[0], *own[-1]]


def _flags(sources: Sources, kept: Sequence[Tensor | None]) -> dict[str, bool]:
    activate = [activate for _, activate in sources]
    return {
        "ACTIVATE": activate[0],
        "KEEP": kept[0] is not None,
        "ACTIVATE_2": activate[-1],
        "KEEP_2": kept[-1] is not None,
    }


def _shared(
    z: Tensor, sources: Sources, alpha: float, turning: Turning | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels take for all parts, and their constants; z (b, l, g, h/g, 2, n)."""
    batch, length, _, _, _, n = z.shape
    turns = turning or (z, z, z, z)
    angles = batch * length if turning is not None and len(turning.cos) == batch else length
    wide = any(t.dtype == torch.float64 for t in (z, *(source for source, _ in sources)))
    constants = {
        "ALPHA": alpha,  # a constant: an argument would be rounded to float32
        "TURNED": turning is not None,
        "WIDE": tl.float64 if wide else tl.float32,
        "BLOCK": _BLOCK,
    }
    return (*turns, batch * length, n, length, angles, z.stride(-2)), constants
