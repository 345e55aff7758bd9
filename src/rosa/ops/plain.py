"""The modulation of low-frequency pairs and its gradients, as few operations of PyTorch.

The pairs are z (b, l, groups, heads/groups, 2, n), a view of a projection's output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rosa.ops.turning import Turning


def signal_of(source: Tensor, activate: bool) -> Tensor:
    """S, of S or of P."""
    return torch.nn.functional.silu(source) if activate else source


def correct(
    z: Tensor, source: Tensor, alpha: float, turning: Turning | None, activate: bool, keep: bool
) -> Tensor | None:
    """z + B·(S ⊙ A·z) in place of z (`rosa.ops.turning`; α·S ⊙ z where nothing turns).

    Returns A·z where it is to `keep`: compact, since a slice would hold the memory of the whole
    output, and of z's dtype.
    """
    signal = signal_of(source, activate).reshape(z.shape)
    if turning is None:
        kept = z.clone(memory_format=torch.contiguous_format) if keep else None
        z.addcmul_(z, signal, value=alpha)
        return kept
    turned = turning.there(z)
    kept = turned.to(z.dtype) if keep else None
    z += turning.back_(_product(signal, turned, activate))
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
    """The gradients of `correct`.

    Args:
        g: the gradient to the new z; with `write`, that to the old one takes its place.
        kept: what `correct` returned, where the gradient to `source` is wanted, which is returned.
    """
    turned = g if turning is None else turning.back_transposed(g)
    to_source = None
    if kept is not None:
        to_source = turned * (kept * alpha if turning is None else kept)
        to_source = to_source.to(source.dtype).reshape(source.shape)
        if activate:
            to_source = torch.ops.aten.silu_backward(to_source, source)
    if write:
        signal = signal_of(source, activate).reshape(g.shape)
        if turning is None:
            g.addcmul_(g, signal, value=alpha)
        else:
            g += turning.there_transposed_(_product(signal, turned, activate))
    return to_source


def _product(signal: Tensor, turned: Tensor, own: bool) -> Tensor:
    """S ⊙ what is turned, in the wider dtype; in the signal's place where nobody else has it."""
    return signal.mul_(turned) if own and signal.dtype == turned.dtype else turned * signal
