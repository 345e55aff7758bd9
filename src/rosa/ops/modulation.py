"""The modulation of low-frequency pairs and its gradients, as few operations of PyTorch.

The pairs are z (b, l, groups, heads/groups, 2, n), a view of a projection's output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rosa.ops.rotation import Turning

Sources = Sequence[tuple[Tensor, bool]]  # S, or P and True, of each part: queries, keys, or both


def signal_of(source: Tensor, activate: bool) -> Tensor:
    """S, of S or of P."""
    return torch.nn.functional.silu(source) if activate else source


def correct(
    parts: Sequence[Tensor],
    sources: Sources,
    alpha: float,
    turning: Turning | None,
    keep: Sequence[bool] | None = None,
) -> list[Tensor | None]:
    """z + B·(S ⊙ A·z) in place of each part z (`rosa.ops.rotation`; α·S ⊙ z where nothing turns).

    Returns A·z of those to `keep`, None of the others: compact, since a slice would hold the
    memory of the whole output, and of z's dtype.
    """
    return [
        _correct(z, *source, alpha, turning, keep is not None and keep[i])
        for i, (z, source) in enumerate(zip(parts, sources, strict=True))
    ]


def _correct(
    z: Tensor, source: Tensor, activate: bool, alpha: float, turning: Turning | None, keep: bool
) -> Tensor | None:
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
    gradients: Sequence[Tensor],
    kept: Sequence[Tensor | None],
    sources: Sources,
    alpha: float,
    turning: Turning | None,
    write: bool,
) -> list[Tensor | None]:
    """The gradients of `correct`.

    Args:
        gradients: of each part that to the new z; with `write`, that to the old one takes its
            place.
        kept: what `correct` returned, where the gradient to a source is wanted, which is returned.
    """
    return [
        _propagate(g, kept_, *source, alpha, turning, write)
        for g, kept_, source in zip(gradients, kept, sources, strict=True)
    ]


def _propagate(
    g: Tensor,
    kept: Tensor | None,
    source: Tensor,
    activate: bool,
    alpha: float,
    turning: Turning | None,
    write: bool,
) -> Tensor | None:
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
