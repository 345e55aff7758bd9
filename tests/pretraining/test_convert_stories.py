"""The llama2.c converter on stories260K: its tokens and its published text."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from pretraining.llama2c import convert_llama2c
from tests.support.llama2c import (
    llama2c_encode,
    read_entries,
)


@pytest.fixture(scope="module")
def stories(shared_data, tmp_path_factory):
    """stories260K: the folder with the originals and the converted one."""
    source, out = shared_data / "stories260K", tmp_path_factory.mktemp("stories") / "model"
    convert_llama2c(source / "stories260K.bin", source / "tok512.bin", out)
    return source, out


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=60))
def test_the_real_tokenizer_encodes_any_text_as_llama2c(stories, text):
    assume(not re.search("<unk>|</?s>", text))
    source, out = stories
    entries = read_entries(source / "tok512.bin")
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokens = tokenizer(text).input_ids
    assert tokens == llama2c_encode(entries, text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_the_real_tokenizer_merges_english_as_llama2c(stories, shared_data):
    source, out = stories
    entries = read_entries(source / "tok512.bin")
    tokenizer = AutoTokenizer.from_pretrained(out)
    story = greedy_story(source)
    for text in (story, *story.split("\n")):
        tokens = tokenizer(text).input_ids
        assert tokens == llama2c_encode(entries, text)
        assert len(tokens) < len(text) / 1.5  # it does merge


def greedy_story(source):
    """The text that stories260K.md gives for temperature 0."""
    page = (source / "stories260K.md").read_text("utf-8")
    return re.search(r"-t 0\.0\n(.*?)\n```", page, re.DOTALL)[1]


def generate(model, tokenizer):
    start = torch.tensor([[model.config.bos_token_id]])
    tokens = model.generate(
        input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=256, do_sample=False
    )
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def test_greedy_text_of_stories260k_is_the_published_one(stories):
    source, out = stories
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.num_parameters() == 260_032
    assert generate(model, AutoTokenizer.from_pretrained(out)) == greedy_story(source)


def test_an_untrained_rosa_adapter_leaves_the_greedy_text_alone(stories):
    from peft import get_peft_model

    from rosa import RosaConfig

    source, out = stories
    base = AutoModelForCausalLM.from_pretrained(out)
    model = get_peft_model(base, RosaConfig(r=8, task_type="CAUSAL_LM"))  # head_dim 8: one pair
    assert model.get_nb_trainable_parameters()[0] > 0
    assert generate(model, AutoTokenizer.from_pretrained(out)) == greedy_story(source)


def test_special_tokens_are_llama2cs(stories):
    _, out = stories
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512
    assert model.generation_config.bos_token_id == 1
    assert set(model.generation_config.eos_token_id) == {1, 2}
