"""The llama2.c converter: against llama2.c's arithmetic and merging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from pretraining.llama2c import convert_llama2c
from pretraining.llama2c.tokenizer import hugging_face_tokenizer, read_tokenizer
from tests.support.llama2c import (
    FIVE_PIECES,
    SMALL,
    Sizes,
    llama2c_decode,
    llama2c_encode,
    llama2c_logits,
    random_weights,
    with_bytes,
    write_checkpoint,
    write_small,
    write_tokenizer,
)


@pytest.fixture
def small(tmp_path):
    return write_small(tmp_path)


@st.composite
def sizes_strategy(draw):
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    return Sizes(
        dim=heads * 2 * draw(st.integers(1, 4)),
        hidden=draw(st.integers(1, 24)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        vocab=264,
        seq_len=draw(st.integers(1, 16)),
        tied=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(sizes=sizes_strategy(), seed=st.integers(0, 2**16))
def test_logits_equal_llama2cs(sizes, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    weights = random_weights(sizes, seed)
    write_checkpoint(folder / "m.bin", sizes, weights)
    write_tokenizer(folder / "t.bin", FIVE_PIECES)
    convert_llama2c(folder / "m.bin", folder / "t.bin", folder / "out")
    model = AutoModelForCausalLM.from_pretrained(folder / "out")
    tokens = np.random.default_rng(seed).integers(0, sizes.vocab, 7).tolist()
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0].double().numpy()
    expected = llama2c_logits(sizes, weights, tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=2e-5)


def test_the_returned_model_equals_the_written_one(small, tmp_path):
    returned = convert_llama2c(*small, tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(returned(ids).logits, written(ids).logits)


def test_an_untied_head_stays_its_own(tmp_path, small):
    sizes = SMALL._replace(tied=False)
    weights = random_weights(sizes, 3)
    write_checkpoint(tmp_path / "untied.bin", sizes, weights)
    model = convert_llama2c(tmp_path / "untied.bin", small[1], tmp_path / "out")
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), weights["head"])
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), weights["embed"]
    )


def test_an_earlier_conversion_is_replaced(small, tmp_path):
    checkpoint, tokenizer = small
    convert_llama2c(*small, tmp_path / "out")
    weights = random_weights(SMALL, 7)
    write_checkpoint(checkpoint, SMALL, weights)
    convert_llama2c(checkpoint, tokenizer, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(
        model.model.embed_tokens.weight.detach().numpy(), weights["embed"]
    )


def converted_tokenizer(folder: Path, entries):
    write_tokenizer(folder / "t.bin", entries)
    return hugging_face_tokenizer(read_tokenizer(folder / "t.bin", len(entries)), 512)


@st.composite
def trained_pieces(draw):
    """Pieces as BPE training leaves them: each a union of two earlier ones; letters score last."""
    letters = [" ", "a", "b", "é"]
    joined: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        known = letters + joined
        piece = draw(st.sampled_from(known)) + draw(st.sampled_from(known))
        if piece not in known:
            joined.append(piece)
    return joined + letters


@settings(max_examples=150, deadline=None)
@given(pieces=trained_pieces(), text=st.text(alphabet=" abé\n€😀", max_size=24))
def test_random_tokenizers_encode_and_decode_as_llama2c(pieces, text, tmp_path_factory):
    entries = with_bytes(pieces)
    tokenizer = converted_tokenizer(tmp_path_factory.mktemp("tokenizer"), entries)
    tokens = tokenizer(text).input_ids
    assert tokens == llama2c_encode(entries, text)
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    assert llama2c_decode(entries, tokens) == text
