"""A tapped output by heads, and back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rosa.rope import Tap


@dataclass
class LowPairs:
    """Where the low-frequency pairs of the queries or keys are in a tapped output."""

    tap: Tap
    head_dim: int
    pairs: tuple[slice, slice]  # real and imaginary dimensions of a head, of one step

    def __post_init__(self) -> None:
        tap, (real, imaginary) = self.tap, self.pairs
        self._step = real.step or 1
        self._first, self._apart = tap.offset + real.start, imaginary.start - real.start
        count = len(range(real.start, real.stop, self._step))
        self._sizes = (tap.groups, tap.heads // tap.groups, 2, count)

    def __call__(self, output: Tensor) -> Tensor:
        """Them alone, (b, l, groups, heads/groups, 2, n): a view, of any layout of the output."""
        axes = self.tap.axes
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


def as_heads(output: Tensor, tap: Tap, head_dim: int) -> Tensor:
    """The queries or keys in a tapped output, (b, l, heads, head_dim): a view where it can be."""
    if tap.axes != "flat":
        return output.transpose(1, 2) if tap.axes == "heads_first" else output
    by_group = _of_each_group(output, tap, tap.heads // tap.groups * head_dim)
    return by_group.unflatten(-1, (-1, head_dim)).flatten(-3, -2)


def with_heads(output: Tensor, z: Tensor, tap: Tap) -> Tensor:
    """A tapped output with other queries or keys, (b, l, heads, head_dim), and the rest as it is.

    A new tensor in the output's own axes, or z itself where the output holds nothing else.
    """
    if tap.axes != "flat":
        return z.transpose(1, 2) if tap.axes == "heads_first" else z
    if output.shape[-1] == z.shape[-2] * z.shape[-1]:
        return z.flatten(-2)
    replaced = output.clone()
    by_group = z.unflatten(-2, (tap.groups, -1)).flatten(-2)
    _of_each_group(replaced, tap, by_group.shape[-1]).copy_(by_group)
    return replaced


def _of_each_group(output: Tensor, tap: Tap, width: int) -> Tensor:
    """(b, l, groups, width), a view: what each group of a flat output has from the offset on."""
    return output.unflatten(-1, (tap.groups, -1))[..., tap.offset : tap.offset + width]
