"""Scores do not depend on what is trained of a norm; relative ones not on how it is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.layers import active_copy, find_decoder_layers, score_factors, scored_norms
from rosa.dls.layers import scored_parameters as parameters_of
from rosa.dls.scores import layer_scores
from rosa.errors import RosaError
from tests.support.adapters import SMALL, TOKENS, adapter_state, randomize
from tests.support.tiny_models import SquaredNorm, tiny_model

READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def scores(model: nn.Module, score: str) -> list[float]:
    """Of one backward pass, with every scored norm trained."""
    layers = find_decoder_layers(model).layers
    model.zero_grad()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    factors = {p: f for layer in layers for p, f in score_factors(layer, score).items()}
    return layer_scores([parameters_of(layer, "") for layer in layers], factors=factors)


def rewritten(name: str, c: float) -> nn.Module:
    """The same function with each scored scale c times as large and what reads it 1/c."""
    model = tiny_model(name, dtype=torch.float64)
    offset = 1 if name.startswith("gemma") else 0
    with torch.no_grad():
        for layer in find_decoder_layers(model).layers:
            for key, norm in scored_norms(layer).items():
                norm.weight.add_(offset).mul_(c).sub_(offset)
                for reader in READERS[key]:
                    layer.get_submodule(reader).weight.div_(c)
    return model


@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma3"])
def test_relative_scores_do_not_depend_on_how_a_function_is_written(name: str) -> None:
    model, again = tiny_model(name, dtype=torch.float64), rewritten(name, 8.0)
    rel = 1e-4 if name == "gemma3" else 1e-6  # Gemma's norms compute in float32
    assert torch.allclose(model(TOKENS).logits, again(TOKENS).logits, atol=rel)
    assert scores(again, "relative") == pytest.approx(scores(model, "relative"), rel=rel)
    eighth = [score / 8 for score in scores(model, "gradient")]
    assert scores(again, "gradient") == pytest.approx(eighth, rel=rel)


def test_llama_s_and_gemma_s_form_of_one_norm_score_equal() -> None:
    gemma = tiny_model("gemma3", dtype=torch.float64)
    expected = scores(gemma, "relative"), scores(gemma, "gradient")
    for layer in find_decoder_layers(gemma).layers:
        for key, norm in scored_norms(layer).items():
            plain = nn.RMSNorm(norm.weight.numel(), eps=norm.eps, dtype=torch.float64)
            plain.weight.data = 1 + norm.weight.data
            setattr(layer, key, plain)
    for found, score in zip(expected, ("relative", "gradient"), strict=True):
        assert scores(gemma, score) == pytest.approx(found, rel=1e-4)  # Gemma's is in float32


@pytest.mark.parametrize("score", ["gradient", "relative"])
@pytest.mark.parametrize("name", ["llama-gqa", "qwen3", "gemma3"])
def test_a_relative_norm_scores_as_the_norm_that_it_is(name: str, score: str) -> None:
    config: dict[str, Any] = {**SMALL, "norm_parametrization": "relative"}
    model = get_peft_model(tiny_model(name, dtype=torch.float64), RosaConfig(**config))
    randomize(model)
    plain = get_peft_model(tiny_model(name, dtype=torch.float64), RosaConfig(**SMALL))
    state = adapter_state(model)
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if parameter.requires_grad:
                saved = key.replace(".default", "").replace(".modules_to_save", "")
                parameter.copy_(state[saved])
    rel = 1e-4 if name == "gemma3" else 1e-6
    assert scores(model, score) == pytest.approx(scores(plain, score), rel=rel)


def test_the_paper_s_score_of_absolute_norms_has_no_factors() -> None:
    layer = find_decoder_layers(tiny_model("llama-gqa")).layers[0]
    assert not score_factors(layer, "gradient")


@pytest.mark.parametrize("score", ["gradient", "relative"])
def test_selection_records_it_and_freezes_delta_exactly(score: str) -> None:
    config = RosaConfig(**SMALL, norm_parametrization="relative")
    model = get_peft_model(tiny_model("gemma3"), config).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    dls = DlsConfig(k_ratio=0.5, interval=1, warmup=0, p_exploit=1.0, score=score)
    selection = DynamicLayerSelection(model, optimizer, dls, 3)
    layers = find_decoder_layers(model).layers
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        before = [[active_copy(n).weight.clone() for n in scored_norms(x).values()] for x in layers]
        expected = layer_scores(
            [parameters_of(layer, "") for layer in layers],
            factors={p: f for x in layers for p, f in score_factors(x, score).items()},
        )
        optimizer.step()
        record = selection.history[-1]
        assert record["scores"] == pytest.approx(expected)
        (best,) = record["selected"]
        assert best == expected.index(max(expected))
        for i, (layer, olds) in enumerate(zip(layers, before, strict=True)):
            for norm, old in zip(scored_norms(layer).values(), olds, strict=True):
                assert torch.equal(active_copy(norm).weight, old) == (i != best)


def test_norms_of_another_form_have_no_relative_score() -> None:
    layer = find_decoder_layers(tiny_model("llama-gqa")).layers[0]
    layer.input_layernorm = SquaredNorm(48)
    with pytest.raises(RosaError, match=r"dls\.score='relative'.*SquaredNorm"):
        score_factors(layer, "relative")
    with pytest.raises(
        RosaError, match=r"dls\.score must be one of gradient, relative, not 'best'"
    ):
        DlsConfig(score="best")  # type: ignore[arg-type]
