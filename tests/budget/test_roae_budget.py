"""The parameter budget, exactly: the integers behind the paper's percentages (no weights held)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.llama import LlamaConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from rosa import RosaConfig


def config(
    kind: Any,
    d: int,
    layers: int,
    q: int,
    kv: int,
    ffn: int,
    vocabulary: int,
    tied: bool,
    **more: Any,
) -> PretrainedConfig:
    return kind(
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=q, num_key_value_heads=kv,
        intermediate_size=ffn, vocab_size=vocabulary, tie_word_embeddings=tied, **more,
    )  # fmt: skip


# model: (config, trainable, percent printed by the paper or, below the line, by its successor)
BUDGETS = {
    "Qwen2.5-7B": (
        config(Qwen2Config, 3584, 28, 28, 4, 18944, 152064, False), 19_927_040, "0.261"
    ),
    "Llama-3.1-8B": (
        config(LlamaConfig, 4096, 32, 32, 8, 14336, 128256, False), 26_476_544, "0.329"
    ),
    "Gemma2-9B": (
        config(Gemma2Config, 3584, 42, 16, 8, 14336, 256000, True, head_dim=256),
        33_632_256,
        "0.363",
    ),
    # Not printed there, from the same formula.
    "Qwen2.5-0.5B": (config(Qwen2Config, 896, 24, 14, 2, 4864, 151936, True), 4_270_080, None),
    "Qwen2.5-1.5B": (config(Qwen2Config, 1536, 28, 12, 2, 8960, 151936, True), 8_572_928, None),
    "Qwen2.5-3B": (config(Qwen2Config, 2048, 36, 16, 2, 11008, 151936, True), 14_598_144, None),
    # Reported with two digits.
    "Llama-3.2-3B": (
        config(LlamaConfig, 3072, 28, 24, 8, 8192, 128256, True), 17_604_608, "0.54"
    ),
    "Qwen3-8B": (
        config(Qwen3Config, 4096, 36, 32, 8, 12288, 151936, False, head_dim=128),
        29_786_112,
        "0.36",
    ),
    "Gemma3-4B": (
        config(Gemma3TextConfig, 2560, 34, 8, 4, 10240, 262208, True, head_dim=256),
        17_059_840,
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_trainable_parameters(name: str) -> None:
    configuration, trainable, percent = BUDGETS[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(configuration)
        model = get_peft_model(model, RosaConfig(), low_cpu_mem_usage=True)
    counted, total = model.get_nb_trainable_parameters()
    assert counted == trainable
    if percent is not None:
        shown = 100 * counted / total
        # The later report cuts where the paper rounds: 0.545 stands as .54.
        digits = len(percent) - 2
        assert percent in (f"{shown:.{digits}f}", f"{shown:.3f}"[: len(percent)])
