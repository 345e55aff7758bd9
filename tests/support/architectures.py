"""Tiny random models of every architecture that RoSA is tested with, and what is known of each.

What a row expects was written by hand from the paper or code of the architecture, not taken from
the library: the tests compare it with what the library says and with what it measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_num_experts": 4,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
# DeepSeek's latent attention: per head 16 dimensions that are not rotated and 8 that are.
MLA: dict[str, Any] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}
LOCAL_GLOBAL = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LINEAR_FULL = {"layer_types": ["linear_attention", "full_attention"]}
CONV_FULL = {"layer_types": ["conv", "full_attention"]}


@dataclass(frozen=True)
class Architecture:
    """One model type. Defaults are those of Llama with 4 query and 2 key heads of 16."""

    model_type: str
    config: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ("moe",)  # of SIZES and MOE, what its config does not take
    pairing: str = "halves"
    rotary_dim: int = 16
    # Of layers that differ: ρ, and the width of what is split into halves.
    rotated_of_span: dict[int, tuple[int, int]] = field(default_factory=dict)
    key_heads: int = 2
    hooked: tuple[str, str] = ("q_proj", "k_proj")
    layers: tuple[int, ...] = (0, 1)  # those that rotate
    # How its rotation function works: axes of what it is given, which states in what order, and
    # where the pairs are in what it returns.
    axes: str = "heads_first"
    order: str = "qk"
    pairing_after: str | None = None
    tolerance: float = 1e-9  # of logits, relative; larger where the model rotates in float32
    # Transformers' eager attention of these models overflows where a float64 mask meets padding.
    padding_dtype: torch.dtype = torch.float64
    variant: str = ""  # of a model type that is there more than once
    # False: angles depend on the length, so that a cache holds older ones; or it hands no cache on.
    cached: bool = True
    slow: bool = False

    @property
    def name(self) -> str:
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type

    def rotated(self, layer: int) -> tuple[int, int]:
        """ρ of a layer, and the width whose halves are paired: ρ but for proportional angles."""
        return self.rotated_of_span.get(layer, (self.rotary_dim, self.rotary_dim))

    def build(self, **changes: Any) -> PreTrainedModel:
        """The model in float64 and eval mode, with seeded weights that are far from their start."""
        values = {**SIZES, **({} if "moe" in self.without else MOE), **self.config, **changes}
        for key in self.without:
            values.pop(key, None)
        config = CONFIG_MAPPING[self.model_type](**values)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    if "norm" in key or "ln_" in key or "output_scale" in key:
                        parameter += 0.1 * torch.randn_like(parameter)
                    elif parameter.ndim == 2 and "embed" not in key:
                        parameter *= 3.0
        return model.double().eval()


def _normed(model_type: str, **changes: Any) -> Architecture:
    return Architecture(model_type, hooked=("q_norm", "k_norm"), **changes)


def _moe(model_type: str, **changes: Any) -> Architecture:
    return Architecture(model_type, without=(), **changes)


def _mla(model_type: str, config: dict[str, Any] | None = None, **changes: Any) -> Architecture:
    """Rotates pairs 2i, 2i + 1, and puts the real halves of all pairs first while it does."""
    return Architecture(
        model_type,
        {**MLA, **(config or {})},
        without=(),
        **{
            "pairing": "interleaved",
            "pairing_after": "halves",
            "rotary_dim": 8,
            "key_heads": 1,
            "hooked": ("q_b_proj", "kv_a_proj_with_mqa"),
            **changes,
        },
    )


def _moe_normed(model_type: str, config: dict[str, Any] | None = None, **rest: Any) -> Architecture:
    return Architecture(model_type, config or {}, (), hooked=("q_norm", "k_norm"), **rest)


def _llama(rope_type: str, config: dict[str, Any] | None = None, **rope: Any) -> Architecture:
    """Llama with another kind of angles."""
    parameters = {"rope_type": rope_type, "rope_theta": 1e4, **rope}
    return Architecture(
        "llama",
        {"rope_parameters": parameters, **(config or {})},
        variant=rope_type,
        cached=rope_type not in ("dynamic", "longrope"),
    )


_ORIGINAL = {"original_max_position_embeddings": 6}
_INDEXED = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
# The local layers rotate all of a head; of the global ones' wider heads a quarter turns.
_GEMMA4 = {**LOCAL_GLOBAL, "global_head_dim": 32, "vocab_size_per_layer_input": 128,
           "hidden_size_per_layer_input": 8}  # fmt: skip
_SHARED = {**_GEMMA4, "num_hidden_layers": 4, "layer_types": 2 * LOCAL_GLOBAL["layer_types"],
           "num_kv_shared_layers": 2}  # fmt: skip
_DEFAULT_ANGLES = {
    each: {"rope_type": "default", "rope_theta": 1e4} for each in LOCAL_GLOBAL["layer_types"]
}
_NORMS = ("q_layernorm", "k_layernorm")
_FUSED = ("query_key_value", "query_key_value")
_GPTJ: dict[str, Any] = {
    "config": {"rotary_dim": 8},
    "without": ("moe", "head_dim", "num_key_value_heads", "intermediate_size"),
    "pairing": "interleaved",
    "rotary_dim": 8,
    "key_heads": 4,
    "axes": "length_first",
    "order": "kq",
    "tolerance": 1e-5,
}
_EVEN: dict[str, Any] = {"pairing": "interleaved"}
_PLAIN = "arcee bitnet cwm diffllama gemma granite hyperclovax jais2 llama ministral ministral3"
_PLAIN += " mistral qwen2 seed_oss starcoder2 olmo internlm3 iquestcoder"

ARCHITECTURES: tuple[Architecture, ...] = (
    *(Architecture(name) for name in _PLAIN.split()),
    Architecture("gemma2", LOCAL_GLOBAL, padding_dtype=torch.float32),
    Architecture("vaultgemma", padding_dtype=torch.float32),
    *map(
        _moe,
        (
            "aria_text", "gpt_oss", "granitemoe", "granitemoeshared", "mixtral", "phimoe",
            "qwen2_moe",
        ),
    ),
    _moe("solar_open"),
    _moe("granitemoe_swa", padding_dtype=torch.float32),
    Architecture("granite_swa", padding_dtype=torch.float32),
    # Norms after rotation: these rotate what q_proj and k_proj put out.
    Architecture("hunyuan_v1_dense"),
    _moe("hunyuan_v1_moe"),
    Architecture("nanochat"),
    # Norms before it, of each head or of all heads at once.
    _normed("apertus"),
    _normed("gemma3_text", config=LOCAL_GLOBAL),
    _normed("qwen3"),
    _moe_normed("doge"),
    _moe_normed("dots1"),
    _moe_normed("mellum"),
    _moe_normed("qwen3_moe"),
    _normed("olmo2"),
    _normed("olmo3", config=LOCAL_GLOBAL),
    _moe_normed("olmoe"),
    _moe_normed("flex_olmo"),
    _moe_normed("minimax_m2"),
    _moe_normed("beam", LOCAL_GLOBAL, layers=(0,), tolerance=1e-5),
    _moe_normed("hy_v3"),
    _moe_normed("kolibri1"),
    _moe_normed("laguna", rotary_dim=8),
    _moe_normed("minimax_m3_vl_text"),
    # Layers that do not attend.
    _moe("minimax", config=LINEAR_FULL, layers=(1,)),
    _moe_normed("lfm3", CONV_FULL, layers=(1,), rotated_of_span={1: (8, 16)}, tolerance=1e-5),
    Architecture("recurrent_gemma", {"block_types": ["recurrent", "attention"]}, rotary_dim=8,
                 layers=(1,), cached=False),
    _moe_normed("qwen3_next", LINEAR_FULL, rotary_dim=4, layers=(1,)),
    _moe_normed("qwen3_5_text", LINEAR_FULL, rotary_dim=4, layers=(1,)),
    _moe_normed("qwen3_5_moe_text", LINEAR_FULL, rotary_dim=4, layers=(1,)),
    _normed("olmo_hybrid", config=LINEAR_FULL, layers=(1,)),
    Architecture("lfm2", CONV_FULL, hooked=_NORMS, layers=(1,)),
    Architecture("lfm2_moe", CONV_FULL, (), hooked=_NORMS, layers=(1,)),
    Architecture(
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "position_embedding_type": "rope",
         "mamba_n_heads": 8},
        (),
        layers=(1,),
    ),
    # Layers that attend without rotation.
    Architecture("smollm3", {"num_hidden_layers": 4}, layers=(0, 1, 2)),
    _moe(
        "llama4_text", config={"num_hidden_layers": 4, "intermediate_size_mlp": 64}, **_EVEN,
        layers=(0, 1, 2), axes="length_first", tolerance=1e-5,
    ),
    _normed("exaone4", config=LOCAL_GLOBAL, layers=(0,)),
    _moe_normed("exaone_moe", LOCAL_GLOBAL, layers=(0,)),
    Architecture(
        "cohere2", LOCAL_GLOBAL, layers=(0,), tolerance=1e-5, **_EVEN
    ),
    _moe_normed("afmoe", LOCAL_GLOBAL, layers=(0,)),
    _moe_normed("flint", LOCAL_GLOBAL, layers=(0,)),
    _moe("cohere2_moe", config=LOCAL_GLOBAL, layers=(0,), tolerance=1e-5, **_EVEN),
    # Pairs 2i, 2i + 1.
    Architecture("cohere", tolerance=1e-5, **_EVEN),
    Architecture("helium", **_EVEN),
    Architecture("ernie4_5", tolerance=1e-5, **_EVEN),
    _moe("ernie4_5_moe", tolerance=1e-5, **_EVEN),
    Architecture("glm", rotary_dim=8, **_EVEN),
    Architecture("glm4", rotary_dim=8, **_EVEN),
    # A part of each head.
    Architecture("nemotron", rotary_dim=8),
    Architecture("phi", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4,
                                             "partial_rotary_factor": 0.5}}, rotary_dim=8),
    Architecture("stablelm", rotary_dim=4),
    _moe("glm4_moe", rotary_dim=8),
    Architecture("persimmon", without=("moe", "num_key_value_heads"), rotary_dim=8, key_heads=4,
                 hooked=_NORMS),
    # Fused projections.
    Architecture("phi3", hooked=("qkv_proj", "qkv_proj")),
    Architecture("gpt_neox", rotary_dim=4, key_heads=4, hooked=_FUSED),
    Architecture("gpt_neox_japanese", key_heads=4, hooked=_FUSED),
    Architecture("falcon", without=("moe", "head_dim"), key_heads=1, hooked=_FUSED),
    Architecture("falcon", {"multi_query": False}, ("moe", "head_dim"), key_heads=4, hooked=_FUSED,
                 variant="multi-head"),
    Architecture("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2},
                 ("moe", "head_dim"), hooked=_FUSED, variant="grouped"),
    # cos and sin are the attention's own.
    Architecture("gptj", **_GPTJ),
    Architecture("codegen", **{**_GPTJ, "hooked": ("qkv_proj", "qkv_proj")}),
    Architecture("moshi"),
    Architecture("modernbert-decoder", key_heads=4, tolerance=1e-5),
    Architecture("cohere_compass_text", {**LOCAL_GLOBAL, "rope_parameters": _DEFAULT_ANGLES}),
    # Two stacks of layers, called in turn.
    Architecture("hrm_text", key_heads=4, layers=(0, 1, 0, 1)),
    _moe("mimo_v2_flash", config={"layer_types": 2 * ["full_attention"]}, rotary_dim=6),
    # Other kinds of angles; text longer than what the angles were trained for.
    _llama("linear", factor=4.0),
    _llama("dynamic", {"max_position_embeddings": 6}, factor=4.0),
    _llama("yarn", factor=4.0, **_ORIGINAL),
    _llama("longrope", factor=4.0, short_factor=[1.0 + i / 9 for i in range(8)],
           long_factor=[1.5 + i / 2 for i in range(8)], **_ORIGINAL),
    _llama("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **_ORIGINAL),
    # Latent attention.
    _mla("deepseek_v2", pairing_after="interleaved", axes="heads_first", tolerance=1e-5),
    _mla("deepseek_v3"),
    _mla("glm4_moe_lite"),
    _mla("youtu"),
    _mla("minicpm3", pairing="halves"),
    _mla("axk1"),
    _mla("axk2", hooked=("q_gate_proj", "kv_a_proj_with_mqa")),
    _mla("bailing_hybrid", LINEAR_FULL, hooked=("q_proj", "kv_a_proj_with_mqa"), layers=(1,)),
    _mla("deepseek_v32", _INDEXED),
    _mla("dots3_note_text", tolerance=1e-5, hooked=("q_b_proj", "k_rope_only_layernorm")),
    _mla("glm_moe_dsa", _INDEXED),
    _mla("hy_v4", _INDEXED, pairing="halves"),
    # Layers that attend with the keys of an earlier one.
    _normed("gemma3n_text", config=_SHARED, layers=(0, 1), axes="length_first"),
    _normed("gemma4_text", config=_SHARED, layers=(0, 1), rotated_of_span={1: (8, 32)},
            axes="length_first"),
    _normed("gemma4_unified_text", config=_GEMMA4, rotated_of_span={1: (8, 32)},
            axes="length_first"),
    # Slow: Mamba layers parallel to or before attention.
    Architecture("bamba", {"attn_layer_indices": [1]}, (), rotary_dim=8, layers=(1,), slow=True),
    Architecture("falcon_h1", {"key_multiplier": 0.5, "attention_in_multiplier": 0.7}, slow=True),
)  # fmt: skip
BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# One of each kind of layout, rotation, angles and block. `make test` checks the tuners
# on these, and the layouts of all.
ONE_OF_EACH_KIND = (
    "llama", "gemma2", "mixtral", "nanochat", "gemma3_text", "qwen3", "olmo2", "qwen3_next", "lfm2",
    "smollm3", "llama4_text", "cohere2", "cohere", "glm", "stablelm", "persimmon", "phi3",
    "gpt_neox", "falcon", "falcon-grouped", "gptj", "llama-yarn", "llama-dynamic", "deepseek_v3",
    "deepseek_v32", "gemma4_text",
)  # fmt: skip
