"""The queries or keys in the output of a hooked module, by heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor

from rosa.ops import modulate_post_rotation, modulate_pre_rotation
from rosa.rope import HookPoint, PairDimensions


@dataclass
class LowPairs:
    """Where the adapted pairs of the queries or keys, by default the low-frequency ones, are in the
    output of a hooked module."""

    point: HookPoint
    head_dim: int
    pairs: PairDimensions  # real and imaginary dimensions of a head

    @property
    def strided(self) -> bool:
        """Whether they can be viewed, as slices of one step; others are for "reference" alone."""
        return isinstance(self.pairs[0], slice)

    def __post_init__(self) -> None:
        if not self.strided:
            return
        point = self.point
        real, imaginary = cast("tuple[slice, slice]", self.pairs)
        self._step = real.step or 1
        self._first, self._apart = point.offset + real.start, imaginary.start - real.start
        count = len(range(real.start, real.stop, self._step))
        self._sizes = (point.groups, point.heads // point.groups, 2, count)

    def __call__(self, output: Tensor) -> Tensor:
        """A view of them alone, (b, l, groups, heads/groups, 2, n), for any strides of `output`."""
        axes = self.point.axes
        if axes == "flat":
            b, length, width = output.shape
            of_b, of_l, one = output.stride()
            of_group, of_head = width // self._sizes[0] * one, self.head_dim * one
        else:
            if axes == "heads_first":
                output = output.transpose(1, 2)
            b, length, _, _ = output.shape
            of_b, of_l, of_head, one = output.stride()
            of_group = 0
        return output.as_strided(
            (b, length, *self._sizes),
            (of_b, of_l, of_group, of_head, self._apart * one, self._step * one),
            output.storage_offset() + self._first * one,
        )


def modulate_heads(
    output: Tensor,
    low: LowPairs,
    signal: Tensor,
    alpha: float,
    cos_sin: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """A hooked output with its queries or keys modulated, by the formulas of `rosa.ops.reference`.

    Args:
        signal: S, (b, l, ...) with h·2n elements for each token.
        cos_sin: (b or 1, l, ρ) of the rotation that follows, for "post"; None for "pre".
    """
    signal = signal.flatten(2).unflatten(-1, (low.point.heads, -1))
    z = split_heads(output, low.point, low.head_dim)
    if cos_sin is None:
        z = modulate_pre_rotation(z, signal, alpha, low.pairs)
    else:
        cos, sin = (tensor.unsqueeze(-2) for tensor in cos_sin)
        z = modulate_post_rotation(z, signal, alpha, low.pairs, cos, sin)
    return replace_heads(output, z, low.point)


def split_heads(output: Tensor, point: HookPoint, head_dim: int) -> Tensor:
    """The queries or keys in a hooked output, (b, l, heads, head_dim): a view where possible."""
    if point.axes != "flat":
        return output.transpose(1, 2) if point.axes == "heads_first" else output
    by_group = _groups(output, point, point.heads // point.groups * head_dim)
    return by_group.unflatten(-1, (-1, head_dim)).flatten(-3, -2)


def replace_heads(output: Tensor, z: Tensor, point: HookPoint) -> Tensor:
    """A hooked output with other queries or keys z (b, l, heads, head_dim), and the rest as it is.

    A new tensor in the output's own axes, or z itself where the output holds nothing else.
    """
    if point.axes != "flat":
        return z.transpose(1, 2) if point.axes == "heads_first" else z
    if output.shape[-1] == z.shape[-2] * z.shape[-1]:
        return z.flatten(-2)
    replaced = output.clone()
    by_group = z.unflatten(-2, (point.groups, -1)).flatten(-2)
    _groups(replaced, point, by_group.shape[-1]).copy_(by_group)
    return replaced


def _groups(output: Tensor, point: HookPoint, width: int) -> Tensor:
    """A view (b, l, groups, width): what each group of a flat output has from the offset on."""
    return output.unflatten(-1, (point.groups, -1))[..., point.offset : point.offset + width]
