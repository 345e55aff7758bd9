"""Gemma3: its norms train as others do, DLS's scores compare its layers, the page is fresh."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma3 import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3 import Qwen3Config

from benchmarks import gemma3_norms
from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.layers import find_decoder_layers, scored_parameters
from rosa.dls.scores import layer_scores
from tests.support import peft_models

ROOT = Path(__file__).parents[2]
TYPES = ["sliding_attention", "sliding_attention", "full_attention"] * 2
SIZES = {**peft_models.SIZES, "num_hidden_layers": 6, "tie_word_embeddings": False}
GEMMA3: dict[str, Any] = {
    **SIZES, "layer_types": TYPES, "sliding_window": 4, "query_pre_attn_scalar": 8,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "gemma3": lambda: Gemma3TextConfig(**GEMMA3),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "llama": lambda: LlamaConfig(**SIZES),
}
TOKENS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))


def tiny(name: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[name]())


def adapted(model: nn.Module, **changes: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(model, RosaConfig(r=4, r_low=0.5, **changes)).train()


def scores_of(model: nn.Module) -> list[float]:
    """Eq. 5 on one batch, as DLS computes it."""
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    found = find_decoder_layers(model)
    return layer_scores([scored_parameters(layer, "") for layer in found.layers])


def test_a_scale_of_one_plus_weight_trains_as_a_scale_of_weight() -> None:
    """Equal gradients and equal AdamW steps: the offset alone cannot make Gemma unstable."""
    gemma, llama = Gemma3RMSNorm(16).double(), LlamaRMSNorm(16).double()
    with torch.no_grad():
        llama.weight.copy_(torch.logspace(-2, 2, 16))
        gemma.weight.copy_(llama.weight - 1)
    x, wanted = torch.randn(2, 8, 16, dtype=torch.float64, generator=torch.Generator()), None
    for norm in (gemma, llama):
        optimizer = torch.optim.AdamW(norm.parameters(), lr=1e-3, weight_decay=0.0)
        for _ in range(5):
            optimizer.zero_grad()
            norm(x).sin().sum().backward()
            optimizer.step()
        if wanted is None:
            wanted = (norm.weight.grad, 1 + norm.weight)
        else:  # Gemma's forward is in float32
            torch.testing.assert_close(norm.weight.grad, wanted[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(norm.weight, wanted[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_finite_and_comparable_across_layers(name: str) -> None:
    """In a model whose norms have equal scales no layer, local or global, is an outlier."""
    scores = scores_of(adapted(tiny(name)))
    assert len(scores) == 6
    assert all(math.isfinite(score) and score > 0 for score in scores)
    assert max(scores) < 10 * min(scores)
    by_type = {
        kind: sum(s for s, t in zip(scores, TYPES, strict=True) if t == kind) / TYPES.count(kind)
        for kind in set(TYPES)
    }
    assert max(by_type.values()) < 3 * min(by_type.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_fall_as_the_scales_of_norms_grow(name: str) -> None:
    """Eq. 5 sees a norm's scale: the same function, written with a scale c times as large, scores
    1/c. So scores compare layers as far as their norms' scales compare (docs/notes/gemma3.md)."""
    factors = [0.1, 10.0, 1.0, 3.0, 1.0, 0.3]
    plain, rescaled = tiny(name), gemma3_norms.rescale(tiny(name), factors)
    with torch.no_grad():
        logits = [model(input_ids=TOKENS).logits for model in (plain, rescaled)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)
    before, after = scores_of(adapted(plain)), scores_of(adapted(rescaled))
    products = [score * factor for score, factor in zip(after, factors, strict=True)]
    assert products == pytest.approx(before, rel=1e-2)


def test_the_multimodal_wrapper_changes_no_score() -> None:
    """Its decoder layers are nested deeper, next to those of a vision tower."""
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=GEMMA3, vision_config=vision, mm_tokens_per_image=4, tie_word_embeddings=False
    )
    text, whole = tiny("gemma3"), Gemma3ForConditionalGeneration(config)
    whole.model.language_model.load_state_dict(text.model.state_dict())
    whole.lm_head.load_state_dict(text.lm_head.state_dict())
    alone, inside = adapted(text), adapted(whole)
    assert not any("vision" in name for name, p in inside.named_parameters() if p.requires_grad)
    assert scores_of(inside) == pytest.approx(scores_of(alone), rel=1e-5)
    optimizer = torch.optim.AdamW([p for p in inside.parameters() if p.requires_grad], lr=1e-3)
    dls = DynamicLayerSelection(inside, optimizer, DlsConfig(interval=1, warmup=0))
    inside.zero_grad()
    expected = scores_of(inside)
    optimizer.step()
    assert dls.history[0]["scores"] == expected


@pytest.mark.parametrize(
    ("name", "train_norms", "dls"),
    [("gemma3", True, True)]
    + [
        pytest.param(name, norms, norms, marks=pytest.mark.slow)
        for name in CONFIGS
        for norms in (True, False)
        if (name, norms) != ("gemma3", True)
    ],
)
def test_training_is_stable(name: str, train_norms: bool, dls: bool) -> None:
    model = adapted(tiny(name), train_norms=train_norms)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    if dls:
        DynamicLayerSelection(model, optimizer, DlsConfig(interval=5, warmup=0), total_steps=15)
    losses = []
    for _ in range(15):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert max(losses) < losses[0] + 0.05
    assert losses[-1] < losses[0]


def test_the_page_shows_the_recorded_figures() -> None:
    results = json.loads(gemma3_norms.RESULTS.read_text(encoding="utf-8"))
    page = gemma3_norms.PAGE.read_text(encoding="utf-8")
    assert gemma3_norms.rendered(page, results) == page
    for name in gemma3_norms.tables(results):
        assert f"<!-- table: {name} -->" in page
