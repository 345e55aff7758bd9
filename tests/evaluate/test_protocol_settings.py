"""Scoring uses what the protocol sets, and only the end tokens of the model's generation config."""

from __future__ import annotations

from typing import Any

import pytest
from peft import get_peft_model

from rosa import RosaConfig
from rosa.data.tokenization import encode_prompts
from rosa.evaluate.generation import end_tokens, generate
from rosa.models.loading import load_base_model, load_tokenizer

PROMPTS = ["Ann visits Rome.\nWhere is Ann?", "What is 2 + 3?"]
SETTINGS = [
    {"min_new_tokens": 12},
    {"stop_strings": ["a"]},
    {"return_dict_in_generate": True},
    {"suppress_tokens": [30, 31, 32, 40, 41]},
    {"forced_eos_token_id": 5},
    {"begin_suppress_tokens": list(range(700))},
    {"sequence_bias": [[[33], 50.0]]},
    {"use_cache": False},
    {"do_sample": True, "temperature": 5.0},
    {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1},
    {"num_return_sequences": 2, "num_beams": 2},
    {"cache_implementation": "static"},
]


@pytest.fixture(scope="module", params=["base", "adapter"])
def model(request: pytest.FixtureRequest) -> Any:
    base = load_base_model("rosa-tiny", device="cpu")
    return base if request.param == "base" else get_peft_model(base, RosaConfig(r=2))


def responses(model: Any) -> list[str]:
    tokenizer = load_tokenizer("rosa-tiny")
    ids = encode_prompts(tokenizer, PROMPTS)
    return [r.text for r in generate(model.eval(), tokenizer, ids, max_new_tokens=16)]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: next(iter(s)))
def test_a_models_generation_config_changes_nothing(settings: dict[str, Any], model: Any) -> None:
    expected = responses(model)
    assert any(expected)
    own = model.generation_config
    before = own.to_dict()
    own.update(**settings)
    changed = own.to_dict()
    try:
        assert responses(model) == expected
        assert model.generation_config is own
        assert own.to_dict() == changed
    finally:
        own.update(**{key: before.get(key) for key in settings})


def test_end_tokens_of_the_model_the_tokenizer_and_the_turn_all_count(model: Any) -> None:
    tokenizer = load_tokenizer("rosa-tiny")
    own = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [7, 9]
    try:
        assert end_tokens(model, tokenizer, 11) == sorted([7, 9, 11, tokenizer.eos_token_id])
    finally:
        model.generation_config.eos_token_id = own
