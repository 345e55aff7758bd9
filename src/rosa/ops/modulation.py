"""The modulation of low-frequency pairs and its gradients in few PyTorch operations.

`rosa.ops.triton_kernels` has the same two functions. The pairs z (b, l, groups, heads/groups, 2, n)
are a view of a projection's output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rosa.ops.rotation import PairRotation


def signal_of(source: Tensor, activate: bool) -> Tensor:
    """S, from S or from P."""
    return torch.nn.functional.silu(source) if activate else source


class PairModulation(NamedTuple):
    """What low-frequency pairs are modulated with.

    Attributes:
        source: S, or with `activate` the pre-activation P of S = SiLU(P): as many elements as the
            pairs have, contiguous and in their order.
        rotation: the one that follows, with α in it; None to scale before rotation.
    """

    source: Tensor
    activate: bool
    alpha: float
    rotation: PairRotation | None


def modulate_pairs_(z: Tensor, by: PairModulation, keep: bool) -> Tensor | None:
    """z + B·(S ⊙ A·z) in place of z (`rosa.ops.rotation`), or z + α·S ⊙ z without a rotation.

    With `keep`, returns A·z for the backward pass: compact, since a slice would hold the memory of
    the whole output, and in z's dtype.
    """
    source, activate, alpha, rotation = by
    signal = signal_of(source, activate).reshape(z.shape)
    if rotation is None:
        kept = z.clone(memory_format=torch.contiguous_format) if keep else None
        z.addcmul_(z, signal, value=alpha)
        return kept
    rotated = rotation.rotate(z)
    kept = rotated.to(z.dtype) if keep else None
    z += rotation.unrotate_(_product(signal, rotated, activate))
    return kept


def modulate_pairs_backward(
    gradient: Tensor, kept: Tensor | None, by: PairModulation, write: bool
) -> Tensor | None:
    """The gradient to the source, where `kept` (of `modulate_pairs_`) is given.

    `gradient` is the one to the new z; with `write`, the one to the old z takes its place.
    """
    source, activate, alpha, rotation = by
    rotated = gradient if rotation is None else rotation.unrotate_transposed(gradient)
    to_source = None
    if kept is not None:
        to_source = rotated * (kept * alpha if rotation is None else kept)
        to_source = to_source.to(source.dtype).reshape(source.shape)
        if activate:
            to_source = torch.ops.aten.silu_backward(to_source, source)
    if write:
        signal = signal_of(source, activate).reshape(gradient.shape)
        if rotation is None:
            gradient.addcmul_(gradient, signal, value=alpha)
        else:
            gradient += rotation.rotate_transposed_(_product(signal, rotated, activate))
    return to_source


def _product(signal: Tensor, rotated: Tensor, own: bool) -> Tensor:
    """S ⊙ rotated, in the wider dtype; in place of a signal without other readers (`own`)."""
    return signal.mul_(rotated) if own and signal.dtype == rotated.dtype else rotated * signal
