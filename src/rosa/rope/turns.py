"""The cos and sin that an attention module is about to rotate with, in the order of a layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.rope.layout import RopeLayout, Turns

Rotation = tuple[Tensor, Tensor]


def turns_of(layout: RopeLayout, module: nn.Module, arguments: Mapping[str, Any]) -> Rotation:
    """cos and sin, both (b or 1, l, ρ or the layout's span), of one call of the attention module.

    Element d of the last axis turns dimension d of a head: both dimensions of a pair have the same.

    Args:
        arguments: those of the module's forward, by name.

    Raises LookupError where the argument that holds the angles is missing, and RosaError where
    there are angles for more or fewer dimensions than those of the layout.
    """
    turns = layout.turns
    if turns is None:
        raise LookupError("position_embeddings")
    cos, sin = _given(turns, module, arguments)
    _check_width(layout, turns, module, cos)
    if _as_laid_out(layout, turns):
        return cos, sin
    half = (layout.span or layout.rotary_dim) // 2
    return tuple(  # type: ignore[return-value]
        _by_dimension(turn[..., : half * turns.stride : turns.stride], layout)
        for turn in (cos, sin if turns.sign == 1 else -sin)
    )


def check_turns(layout: RopeLayout, module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raises RosaError as `turns_of` does, of angles that are an argument: that costs nothing."""
    turns = layout.turns
    if turns is None or turns.source != "position_embeddings" or turns.source not in arguments:
        return
    _check_width(layout, turns, module, _given(turns, module, arguments)[0])


def _check_width(layout: RopeLayout, turns: Turns, module: nn.Module, cos: Tensor) -> None:
    """Else other pairs than the slowest would be adapted, without a word."""
    expected = layout.span or layout.rotary_dim
    width = cos.shape[-1] * (2 if turns.by_pair else 1)
    if width != expected:
        raise RosaError(
            f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')} rotates {width} "
            f"dimensions of each head, where its configuration says {expected}, so that RoSA would "
            "adapt the wrong ones; use the version of Transformers that the model was made for, or "
            "another PEFT method"
        )


def _given(turns: Turns, module: Any, arguments: Mapping[str, Any]) -> Rotation:
    if turns.source == "position_embeddings":
        given = arguments["position_embeddings"]
        return (given.real, given.imag) if isinstance(given, Tensor) else given
    if turns.source == "rotary_emb":
        return module.rotary_emb(arguments["hidden_states"], arguments["position_ids"])
    sin, cos = module.embed_positions[arguments["position_ids"]].chunk(2, dim=-1)
    return cos, sin


def _as_laid_out(layout: RopeLayout, turns: Turns) -> bool:
    own_stride = 1 if layout.pairing == "halves" else 2
    return turns.stride == own_stride and turns.sign == 1 and not turns.by_pair


def _by_dimension(turn: Tensor, layout: RopeLayout) -> Tensor:
    """By pair to by dimension, twice as wide."""
    if layout.pairing == "halves":
        return torch.cat([turn, turn], dim=-1)
    return turn.repeat_interleave(2, dim=-1)
