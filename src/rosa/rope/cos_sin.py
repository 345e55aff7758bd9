"""The cos and sin that an attention module rotates with, ordered as its layout says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.rope.layout import CosSinSource, RopeLayout

CosSin = tuple[Tensor, Tensor]


def cos_sin_of(layout: RopeLayout, module: nn.Module, arguments: Mapping[str, Any]) -> CosSin:
    """cos and sin, both (b or 1, l, ρ or the layout's span), of one call of the attention module.

    Element d of the last axis rotates dimension d of a head: both dimensions of a pair have the
    same.

    Args:
        arguments: those of the module's forward, by name.

    Raises LookupError where the argument that holds cos and sin is missing, and RosaError where
    they are for more or fewer dimensions than those of the layout.
    """
    source = layout.cos_sin
    if source is None:
        raise LookupError("position_embeddings")
    cos, sin = _read(source, module, arguments)
    _check_width(layout, source, module, cos)
    if source.sign == -1:
        sin = -sin
    if source.stride == (1 if layout.pairing == "halves" else 2) and not source.by_pair:
        return cos, sin
    stop = (layout.span or layout.rotary_dim) // 2 * source.stride
    cos, sin = cos[..., : stop : source.stride], sin[..., : stop : source.stride]
    if layout.pairing == "halves":
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)
    return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)


def check_cos_sin(layout: RopeLayout, module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raises RosaError as `cos_sin_of` does, where cos and sin are an argument: that is free."""
    source = layout.cos_sin
    given = "position_embeddings" in arguments
    if given and source is not None and source.origin == "position_embeddings":
        _check_width(layout, source, module, _read(source, module, arguments)[0])


def _check_width(layout: RopeLayout, source: CosSinSource, module: nn.Module, cos: Tensor) -> None:
    """Else other pairs than those of the lowest frequencies would be adapted silently."""
    expected = layout.span or layout.rotary_dim
    width = cos.shape[-1] * (2 if source.by_pair else 1)
    if width != expected:
        raise RosaError(
            f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')} rotates {width} "
            f"dimensions of each head, but its configuration says {expected}: the wrong "
            "ones would be adapted; use the version of Transformers that the model was made for, "
            "or another PEFT method"
        )


def _read(source: CosSinSource, module: Any, arguments: Mapping[str, Any]) -> CosSin:
    if source.origin == "position_embeddings":
        given = arguments["position_embeddings"]
        return (given.real, given.imag) if isinstance(given, Tensor) else given
    if source.origin == "rotary_emb":
        return module.rotary_emb(arguments["hidden_states"], arguments["position_ids"])
    sin, cos = module.embed_positions[arguments["position_ids"]].chunk(2, dim=-1)
    return cos, sin
