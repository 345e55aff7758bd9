"""Accounts for every type of causal language model that the installed Transformers has.

A type is tested (`tests/support/architectures.py`), not supported (with a tested error), a
multimodal wrapper of a tested text model, or not tested, for a reason given here. For a type that a
new Transformers brings and that is none of these a test fails.
"""

from __future__ import annotations

from typing import Any

import torch
from peft import get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rosa import RosaConfig
from rosa.errors import RosaError
from tests.support.architectures import ARCHITECTURES

_NO_ROTATION = (
    "bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small "
    "camembert cpmant ctrl data2vec-text electra ernie falcon_mamba git gpt-sw3 gpt_bigcode "
    "gpt_neo inkling2_text inkling_text jamba kimi_linear mamba mamba2 marian mbart megatron-bert "
    "mvp nemotron_h openai-gpt pegasus plbart prophetnet rembert roberta roberta-prelayernorm "
    "roc_bert rwkv trocr whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet xlstm xmod zamba"
)
# Not supported, as they rotate nothing; with what their configs need in addition to the defaults.
WITHOUT_ROTATION: dict[str, dict[str, Any]] = {
    **{name: {} for name in _NO_ROTATION.split()},
    "reformer": {"is_decoder": True},
}
# Multimodal models, and the tested type of their language model.
WRAPPERS = {
    "fuyu": "persimmon",
    "gemma3": "gemma3_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2",
    "llama4": "llama4_text",
    "moss_transcribe_diarize": "qwen3",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}
_TEXT_TESTED = "its language model is tested alone"
NOT_TESTED = {
    "blt": "works on patches of bytes with four stacks of layers, and has no tiny config here",
    "dots3_note": _TEXT_TESTED,
    "emu3": "multimodal, has no tiny config here",
    "gemma3n": f"needs the timm library; {_TEXT_TESTED}",
    "gemma4_assistant": "a draft model, attends with the keys of the model it helps",
    "gemma4_unified_assistant": "a draft model, attends with the keys of the model it helps",
    "mllama": "multimodal, has no tiny config here",
    "musicgen": "a decoder of sounds without rotation; is not built from its own default config",
    "musicgen_melody": "as musicgen",
    "phi4_multimodal": "multimodal, has no tiny config here; its language model is that of phi3",
    "qwen4_exp": "is not built from its own default config; its language model is not supported",
    "zamba2": "rotates only with use_mem_rope, in one attention that several layers share",
}


def causal_types() -> set[str]:
    """The types that the installed Transformers builds a causal language model of."""
    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def accounts(unsupported: set[str]) -> dict[str, set[str]]:
    """{what became of them: types}; `unsupported` are those of the table of errors."""
    return {
        "tested": {each.model_type for each in ARCHITECTURES},
        "wrapper": set(WRAPPERS),
        "not supported": unsupported | set(WITHOUT_ROTATION),
        "not tested": set(NOT_TESTED),
    }


def without_weights(model_type: str, **config: Any) -> PreTrainedModel:
    """The model of a type's default config, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**config))


def attach_error(model: PreTrainedModel) -> str:
    """The error that RoSA raises for a model."""
    try:
        get_peft_model(model, RosaConfig())
    except RosaError as error:
        return str(error)
    raise AssertionError(f"{model.config.model_type} raises no error")
