"""Caches, padding and positions: what the adapter must not disturb."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.support.adapters import adapted
from tests.support.nightly import each_stage, over
from tests.support.op_variants import each_variant_nightly
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

each_model = over("name", ["llama-gqa", "gemma3"], ["llama-yarn", "qwen2", "qwen3", "gemma2"])


def generate(model: PeftModel, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(new tokens (b, 8), their logits (b, 8, vocabulary)) of greedy decoding with a cache."""
    out = model.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens) if mask is None else mask,
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, dim=1)


@each_variant_nightly
@each_stage
@each_model
@torch.no_grad()
def test_generation_with_a_cache_equals_recomputation(name: str, stage: str) -> None:
    model = adapted(name, rope_stage=stage, dtype=torch.float64)
    tokens = random_tokens()
    new, logits = generate(model, tokens)
    whole = model(input_ids=torch.cat([tokens, new], dim=1), use_cache=False).logits
    assert relative_error(logits, whole[:, tokens.shape[1] - 1 : -1]) <= 1e-6


@each_variant_nightly
@each_stage
@each_model
@torch.no_grad()
def test_a_left_padded_row_equals_the_row_alone(name: str, stage: str) -> None:
    """In float32: Gemma2's eager attention gives NaN in float64 where a row sees padding alone."""
    model = adapted(name, rope_stage=stage)
    short, long = random_tokens(1, 5, seed=1), random_tokens(1, 12, seed=2)
    padding = torch.zeros(1, 7, dtype=torch.long)
    batch = torch.cat([torch.cat([padding, short], dim=1), long])
    mask = torch.ones_like(batch)
    mask[0, :7] = 0
    new, logits = generate(model, batch, mask)
    for row, alone in enumerate((short, long)):
        new_alone, logits_alone = generate(model, alone)
        assert torch.equal(new[row], new_alone[0])
        assert relative_error(logits[row], logits_alone[0]) <= 2e-5


@each_variant_nightly
@each_model
@torch.no_grad()
def test_pre_depends_on_relative_positions_alone_and_post_does_not(name: str) -> None:
    tokens = random_tokens()
    positions = torch.arange(tokens.shape[1])[None].expand_as(tokens)
    for stage in ("post", "pre"):
        model = adapted(name, rope_stage=stage, dtype=torch.float64)
        here = model(input_ids=tokens, position_ids=positions).logits
        shifted = model(input_ids=tokens, position_ids=positions + 50).logits
        # The model's own cos and sin are rounded to float32.
        error = relative_error(shifted, here)
        assert error <= 2e-5 if stage == "pre" else error > 1e-4


@each_variant_nightly
@each_stage
@torch.no_grad()
def test_packed_sequences_equal_the_sequences_alone(stage: str) -> None:
    """Position ids that restart within a row, with a block-diagonal causal mask."""
    model = adapted("qwen3", rope_stage=stage, dtype=torch.float64)
    first, second = random_tokens(1, 5, seed=1), random_tokens(1, 7, seed=2)
    allowed = torch.block_diag(torch.ones(5, 5).tril(), torch.ones(7, 7).tril()).bool()
    mask = torch.zeros(1, 1, 12, 12, dtype=torch.float64).masked_fill(~allowed, -1e9)
    packed = model(
        input_ids=torch.cat([first, second], dim=1),
        position_ids=torch.cat([torch.arange(5), torch.arange(7)])[None],
        attention_mask=mask,
    ).logits
    alone = [model(input_ids=tokens).logits for tokens in (first, second)]
    assert relative_error(packed, torch.cat(alone, dim=1)) <= 1e-6


@torch.no_grad()
def test_generate_takes_its_input_by_position_too() -> None:
    model = adapted("llama-gqa")
    tokens = random_tokens()
    by_keyword = model.generate(input_ids=tokens, max_new_tokens=4, do_sample=False)
    assert torch.equal(model.generate(tokens, max_new_tokens=4, do_sample=False), by_keyword)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
@torch.no_grad()
def test_caches_beams_and_attention_kernels_agree(name: str) -> None:
    model = adapted(name)
    tokens = random_tokens()

    def generated(**options: object) -> Tensor:
        mask = torch.ones_like(tokens)
        return model.generate(
            input_ids=tokens, attention_mask=mask, max_new_tokens=6, do_sample=False, **options
        )

    expected = generated()
    assert torch.equal(generated(cache_implementation="static", disable_compile=True), expected)
    assert torch.equal(generated(num_beams=3), generated(num_beams=3, use_cache=False))
    model.get_base_model().set_attn_implementation("eager")
    assert torch.equal(generated(), expected)
