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
    """z + α·R⁻¹·(S ⊙ R·z) in place of z; returns a compact copy of the old z where it is to `keep`.

    A copy, since a slice would hold the memory of the whole output.
    """
    kept = z.clone(memory_format=torch.contiguous_format) if keep else None
    signal = signal_of(source, activate).reshape(z.shape)
    if turning is None:
        z.addcmul_(z, signal, value=alpha)
    else:
        turning.add_back(z, turning.there(z if kept is None else kept) * signal)
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
        kept: the old z, where the gradient to `source` is wanted, which is returned.
    """
    turned = g if turning is None else turning.there(g)
    to_source = None
    if kept is not None:
        scaled = kept * alpha if turning is None else turning.there_scaled(kept)
        to_source = (turned * scaled).to(source.dtype).reshape(source.shape)
        if activate:
            to_source = torch.ops.aten.silu_backward(to_source, source)
    if write:
        signal = signal_of(source, activate).reshape(g.shape)
        if turning is None:
            g.addcmul_(g, signal, value=alpha)
        else:
            turning.add_back(g, turned * signal)
    return to_source
