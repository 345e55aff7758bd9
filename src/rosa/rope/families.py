"""Which architectures are known, and the rotary layout of one of their attention modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rosa.rope.layout import Axes, Pairing, RopeLayout, Tap

if TYPE_CHECKING:
    from torch import nn


class _Family(NamedTuple):
    """What the architectures of one family share; sizes come from each module's config."""

    query: str
    key: str
    axes: Axes
    pairing: Pairing = "halves"


_PLAIN = _Family("q_proj", "k_proj", "flat")
_FAMILIES: dict[str, _Family] = {
    "llama": _PLAIN,
    "mistral": _PLAIN,
    "qwen2": _PLAIN,
    "gemma2": _PLAIN,
    "qwen3": _Family("q_norm", "k_norm", "length_first"),
    "gemma3_text": _Family("q_norm", "k_norm", "heads_first"),
}
KNOWN_MODEL_TYPES = tuple(sorted(_FAMILIES))


def layout_of(module: nn.Module) -> RopeLayout | None:
    """The rotary layout of an attention module of a known architecture, None for any other module.

    Identified by what it is (its config's model type and its query and key modules), not by name:
    the vision tower of a multimodal model has a `self_attn` too, without RoPE.
    """
    config = getattr(module, "config", None)
    family = _FAMILIES.get(getattr(config, "model_type", ""))
    if family is None or config is None:
        return None
    if not (hasattr(module, family.query) and hasattr(module, family.key)):
        return None
    head_dim = module.head_dim
    assert isinstance(head_dim, int)
    return RopeLayout(
        hidden_size=config.hidden_size,
        head_dim=head_dim,
        rotary_dim=head_dim,  # every family above rotates whole heads
        pairing=family.pairing,
        query=Tap(family.query, family.axes, config.num_attention_heads),
        key=Tap(family.key, family.axes, config.num_key_value_heads),
    )


def has_rope(model: nn.Module) -> bool:
    """Whether a model rotates anything at all, known to us or not."""
    if any("rotary" in type(module).__name__.lower() for module in model.modules()):
        return True
    config = getattr(model, "config", None)
    return any(getattr(config, name, None) for name in ("rope_parameters", "rotary_dim"))
