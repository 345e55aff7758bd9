"""The table of known architectures, and the RoPE layout of one of their attention modules.

Every row was detected (`rosa.rope.probe`), and the tests detect it again. The layout of an
architecture without a row is detected when an adapter is attached.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rosa.errors import RosaError
from rosa.rope.layout import Axes, CosSinSource, HookPoint, Pairing, RopeLayout

if TYPE_CHECKING:
    from torch import nn


# Names of the last modules before rotation, of queries and of keys, and the axes of their outputs.
_Hooks = tuple[str, str, Axes]


class _Family(NamedTuple):
    """What the architectures of one family share; sizes come from each module and its config."""

    hooks: tuple[_Hooks, ...]  # the first that the module has: norms are often optional
    pairing: Pairing = "halves"
    cos_sin: CosSinSource = CosSinSource()
    rotates: Callable[[Any], bool] = lambda module: True
    split: Callable[[Any, str], tuple[HookPoint, HookPoint]] | None = None  # of a fused projection


_PROJECTIONS: _Hooks = ("q_proj", "k_proj", "flat")
_NORMS: _Hooks = ("q_norm", "k_norm", "length_first")
_NORMS_BY_HEAD: _Hooks = ("q_norm", "k_norm", "heads_first")
_FLAT_NORMS: _Hooks = ("q_norm", "k_norm", "flat")
_LAYER_NORMS: _Hooks = ("q_layernorm", "k_layernorm", "length_first")
_LAYER_NORMS_BY_HEAD: _Hooks = ("q_layernorm", "k_layernorm", "heads_first")
_FUSED: _Hooks = ("query_key_value", "query_key_value", "flat")
_QKV: _Hooks = ("qkv_proj", "qkv_proj", "flat")
_EVERY_OTHER = CosSinSource(stride=2)
_BY_PAIR = CosSinSource(by_pair=True)


def _uses_rope(attention: Any) -> bool:
    return bool(attention.use_rope)


def _is_local(attention: Any) -> bool:
    return attention.sliding_window is not None


def _is_local_or_all_are_global(attention: Any) -> bool:
    return attention.sliding_window is None or attention.is_sliding


def _thirds_of_each_head(attention: Any, name: str) -> tuple[HookPoint, HookPoint]:
    """| q k v | q k v | ..., one group per head."""
    heads = attention.config.num_attention_heads
    return HookPoint(name, "flat", heads, heads, 0), HookPoint(
        name, "flat", heads, heads, _head_dim(attention)
    )


def _all_queries_first(attention: Any, name: str) -> tuple[HookPoint, HookPoint]:
    """| q q q q | k k | v v |."""
    config = attention.config
    heads, size = config.num_attention_heads, _head_dim(attention)
    key = HookPoint(name, "flat", config.num_key_value_heads, 1, heads * size)
    return HookPoint(name, "flat", heads), key


def _falcon(attention: Any, name: str) -> tuple[HookPoint, HookPoint]:
    """Three generations: | q k v | per head; | q q q q | k | v |; | q q k v | per key head."""
    heads, size = attention.num_heads, _head_dim(attention)
    if not (attention.new_decoder_architecture or attention.multi_query):
        return _thirds_of_each_head(attention, name)
    groups = attention.num_kv_heads
    return (
        HookPoint(name, "flat", heads, groups, 0),
        HookPoint(name, "flat", groups, groups, heads // groups * size),
    )


_TABLE = (
    (
        "arcee aria_text bitnet cwm diffllama falcon_h1 gemma gemma2 granite granite_swa "
        "granitemoe granitemoe_swa granitemoehybrid granitemoeshared hunyuan_v1_dense "
        "hunyuan_v1_moe hyperclovax internlm3 iquestcoder jais2 llama minimax ministral ministral3 "
        "mistral mixtral nemotron olmo phimoe qwen2 qwen2_moe seed_oss solar_open starcoder2 "
        "vaultgemma",
        _Family((_PROJECTIONS,)),
    ),
    ("gpt_oss", _Family((_PROJECTIONS,), cos_sin=_BY_PAIR)),
    ("nanochat", _Family((_PROJECTIONS,), cos_sin=CosSinSource(sign=-1))),
    ("smollm3", _Family((_PROJECTIONS,), rotates=_uses_rope)),
    (
        "doge dots1 gemma3n_text gemma4_text gemma4_unified_text laguna lfm3 mellum "
        "minimax_m3_vl_text qwen3 qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next",
        _Family((_NORMS,)),
    ),
    ("afmoe beam flint", _Family((_NORMS,), rotates=_is_local)),
    ("glm4_moe", _Family((_NORMS, _PROJECTIONS))),
    ("flex_olmo minimax_m2 olmo2 olmo3 olmo_hybrid olmoe", _Family((_FLAT_NORMS,))),
    ("apertus gemma3_text hy_v3 kolibri1", _Family((_NORMS_BY_HEAD,))),
    ("exaone4 exaone_moe", _Family((_NORMS_BY_HEAD,), rotates=_is_local_or_all_are_global)),
    ("lfm2 lfm2_moe", _Family((_LAYER_NORMS,))),
    ("phi stablelm", _Family((_LAYER_NORMS_BY_HEAD, _PROJECTIONS))),
    ("cohere", _Family((_NORMS, _PROJECTIONS), "interleaved", _EVERY_OTHER)),
    (
        "cohere2 cohere2_moe",
        _Family((_NORMS, _PROJECTIONS), "interleaved", _EVERY_OTHER, rotates=_is_local),
    ),
    ("ernie4_5 ernie4_5_moe glm glm4 helium", _Family((_PROJECTIONS,), "interleaved")),
    ("llama4_text", _Family((_PROJECTIONS,), "interleaved", _BY_PAIR, _uses_rope)),
    (
        "gptj",
        _Family((_PROJECTIONS,), "interleaved", CosSinSource("embed_positions", by_pair=True)),
    ),
    ("gpt_neox", _Family((_FUSED,), split=_thirds_of_each_head)),
    ("persimmon", _Family((_LAYER_NORMS, _FUSED), split=_thirds_of_each_head)),
    ("falcon", _Family((_FUSED,), rotates=lambda a: not a.config.alibi, split=_falcon)),
    ("phi3", _Family((_QKV,), split=_all_queries_first)),
)
_FAMILIES = {name: family for names, family in _TABLE for name in names.split()}
# A layout could describe these, and an adapter still does not fit them.
_UNSUPPORTED = {
    "longcat_flash": "has two attentions that rotate in each layer, and their norms in lists",
    "qwen4_exp_text": "rotates with angles that reach back over the cached tokens",
}
KNOWN_MODEL_TYPES = tuple(sorted(_FAMILIES))


def known_layout(module: nn.Module) -> RopeLayout | None:
    """The RoPE layout of an attention module of a known architecture, None for any other module.

    Identified by its config's model type and its query and key modules, not by name: the vision
    tower of a multimodal model has a `self_attn` too, without RoPE.

    Raises RosaError for an unsupported attention module, and for one that clips its queries.
    """
    config = getattr(module, "config", None)
    model_type = getattr(config, "model_type", "")
    if (why := _UNSUPPORTED.get(model_type)) and _has(module, "o_proj"):
        raise RosaError(f"{model_type} cannot be adapted: the model {why}; use another PEFT method")
    family = _FAMILIES.get(model_type)
    if family is None or config is None:
        return None
    hooks = next((h for h in family.hooks if _has(module, h[0]) and _has(module, h[1])), None)
    if hooks is None or not family.rotates(module):
        return None
    if getattr(config, "clip_qkv", None) is not None:
        raise RosaError(
            f"this {model_type} model cannot be adapted: it clips its queries and keys before "
            f"rotation (clip_qkv={config.clip_qkv}); use another PEFT method"
        )
    head_dim = _head_dim(module)
    for_queries, for_keys, axes = hooks
    if family.split is not None and for_queries == for_keys:
        query, key = family.split(module, for_queries)
    else:
        heads = config.num_attention_heads
        query = HookPoint(for_queries, axes, heads)
        key = HookPoint(for_keys, axes, heads if family.split else _key_heads(module, head_dim))
    proportional = _rope_parameters(module).get("rope_type") == "proportional"
    return RopeLayout(
        hidden_size=config.hidden_size,
        head_dim=head_dim,
        rotary_dim=_rotary_dim(module, head_dim),
        pairing=family.pairing,
        query=query,
        key=key,
        cos_sin=family.cos_sin,
        span=head_dim if proportional else None,
    )


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None


def _head_dim(attention: Any) -> int:
    return int(attention.head_size if hasattr(attention, "head_size") else attention.head_dim)


def _key_heads(attention: Any, head_dim: int) -> int:
    """As many as the key projection has room for; the config counts them per model."""
    projection = getattr(attention, "k_proj", None)
    features = getattr(projection, "out_features", None)
    return features // head_dim if features else attention.config.num_key_value_heads


def _rotary_dim(attention: Any, head_dim: int) -> int:
    """ρ: given by the module or as a share of the head, which may differ between layer types."""
    given = getattr(attention, "rotary_ndims", None) or getattr(attention, "rotary_dim", None)
    if given:
        return int(given)
    share = _rope_parameters(attention).get("partial_rotary_factor")
    share = share or getattr(attention.config, "partial_rotary_factor", None)
    return int(head_dim * (share or 1.0))


def _rope_parameters(attention: Any) -> dict[str, Any]:
    """The config's, of the module's layer type where each type has its own."""
    config = attention.config
    rope = getattr(config, "rope_parameters", None) or {}
    layer_types = getattr(config, "layer_types", None)
    if layer_types and layer_types[attention.layer_idx] in rope:
        rope = rope[layer_types[attention.layer_idx]] or {}
    return dict(rope)


def has_rope(model: nn.Module) -> bool:
    """Whether a model rotates anything at all, known to us or not."""
    if any("rotary" in type(module).__name__.lower() for module in model.modules()):
        return True
    config = getattr(model, "config", None)
    if hasattr(config, "rotary_value"):  # RoFormer's, where it is false: values are not rotated
        return True
    return any(getattr(config, name, None) for name in ("rope_parameters", "rotary_dim"))
