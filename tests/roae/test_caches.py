"""Caches, padding and ways of generating: with any the adapter computes what it does without.

The reference is recomputation of the whole text without a cache, or, for a cache that loses
precision, a plain model whose rotation is patched (`tests.support.reference`), with the same cache.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StaticCache,
    pipeline,
)

from rosa import tiny_model_path
from tests.support.adapters import SMALL, adapted, adapter_state
from tests.support.nightly import each_stage, over
from tests.support.op_variants import each_variant_nightly
from tests.support.reference import Reference, relative_error
from tests.support.tiny_models import random_tokens, tiny_model
from tests.support.versions import needs

NEW = 12  # of prompts of 12 tokens: sliding windows are 8
QUANTIZED: dict[str, dict[str, Any]] = {
    "fp8": {},
    # By default the 128 latest tokens are not quantized, which is all of these.
    "hqq": {"nbits": 8, "residual_length": 3, "q_group_size": 16, "axis_key": 1, "axis_value": 1},
}
slow = pytest.mark.slow
each_model = over(
    "name",
    ["llama-gqa", "gemma3"],
    nightly=["llama-yarn", "qwen2", "qwen3", "gemma2", "mistral"],
)


def generate(model: PreTrainedModel | PeftModel, tokens: Tensor, **options: Any) -> Any:
    """Greedy by default: .sequences, and .logits of the new tokens (b, NEW, vocabulary)."""
    out = model.generate(
        input_ids=tokens,
        **{
            "attention_mask": torch.ones_like(tokens),
            "max_new_tokens": NEW,
            "min_new_tokens": NEW,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
            "disable_compile": True,
            **options,
        },
    )
    out.logits = torch.stack(out.logits, dim=1)
    return out


def recomputed(model: PeftModel, sequences: Tensor) -> Tensor:
    """The logits that the last NEW tokens were chosen by, without a cache."""
    return model(input_ids=sequences, use_cache=False).logits[:, -NEW - 1 : -1]


@each_variant_nightly
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_implementation": "static"},
        pytest.param({"prefill_chunk_size": 5}, marks=needs("transformers", "5.8")),
    ],
    ids=["dynamic", "static", "chunked-prefill"],
)
@each_stage
@each_model
@torch.no_grad()
def test_a_cache_equals_recomputation(name: str, stage: str, options: dict[str, Any]) -> None:
    """Mistral's and every second layer of Gemma3 keep a window of 8 tokens."""
    model = adapted(name, rope_stage=stage, dtype=torch.float64)
    out = generate(model, random_tokens(), **options)
    assert relative_error(out.logits, recomputed(model, out.sequences)) <= 1e-6


@needs("transformers", "5.18")
@each_variant_nightly
@pytest.mark.parametrize("backend", QUANTIZED)
@each_stage
@over("name", ["llama-gqa"], nightly=["qwen3"])
@torch.no_grad()
def test_a_quantized_cache_holds_the_modulated_keys(name: str, stage: str, backend: str) -> None:
    model = adapted(name, rope_stage=stage)
    tokens = random_tokens()
    options = {
        "cache_implementation": "quantized",
        "cache_config": {"backend": backend, **QUANTIZED[backend]},
    }
    reference = Reference(tiny_model(name), adapter_state(model), SMALL["alpha"], stage)
    with reference.active():
        expected = generate(reference.model, tokens, **options)
    actual = generate(model, tokens, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    # A key at the border of two steps may fall to either side.
    assert relative_error(actual.logits, expected.logits) <= 2e-2
    lost = relative_error(actual.logits, recomputed(model, actual.sequences))
    assert relative_error(actual.logits, expected.logits) < lost / 4


@each_variant_nightly
@pytest.mark.parametrize("static", [False, True])
@each_stage
@torch.no_grad()
def test_a_cache_is_cropped_and_another_text_continues(stage: str, static: bool) -> None:
    model = adapted("qwen3", rope_stage=stage, dtype=torch.float64)
    config = model.get_base_model().config
    cache = StaticCache(config, max_cache_len=32) if static else DynamicCache(config=config)
    first, second = random_tokens(1, 12, seed=1), random_tokens(1, 5, seed=2)
    model(input_ids=first, past_key_values=cache)
    if static:
        cache.reset()
        model(input_ids=first[:, :7], past_key_values=cache)
    else:
        cache.crop(-5)
    positions = torch.arange(7, 12)[None]
    on = model(input_ids=second, past_key_values=cache, position_ids=positions).logits
    whole = model(input_ids=torch.cat([first[:, :7], second], dim=1), use_cache=False).logits
    assert relative_error(on, whole[:, 7:]) <= 1e-6


@each_variant_nightly
@each_stage
@torch.no_grad()
def test_the_cache_of_a_prompt_serves_several_generations(stage: str) -> None:
    model = adapted("llama-gqa", rope_stage=stage, dtype=torch.float64)
    prefix = random_tokens(1, 9, seed=1)
    cache = model(input_ids=prefix, past_key_values=DynamicCache()).past_key_values
    for seed in (2, 3):
        tokens = torch.cat([prefix, random_tokens(1, 4, seed=seed)], dim=1)
        out = generate(model, tokens, past_key_values=copy.deepcopy(cache))
        assert torch.equal(out.sequences, generate(model, tokens).sequences)
        assert relative_error(out.logits, recomputed(model, out.sequences)) <= 1e-6


@each_stage
@torch.no_grad()
def test_sampling_equals_a_loop_that_recomputes(stage: str) -> None:
    model, tokens = adapted("gemma3", rope_stage=stage, dtype=torch.float64), random_tokens()
    torch.manual_seed(5)
    out = generate(model, tokens, do_sample=True, temperature=0.7, top_k=0, num_return_sequences=2)
    torch.manual_seed(5)
    by_hand = tokens.repeat_interleave(2, dim=0)
    for _ in range(NEW):
        logits = model(input_ids=by_hand, use_cache=False).logits[:, -1].float() / 0.7
        logits[:, model.config.eos_token_id] = -torch.inf  # min_new_tokens
        by_hand = torch.cat([by_hand, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    assert torch.equal(out.sequences, by_hand)
    assert not torch.equal(by_hand[0], by_hand[1])


@each_variant_nightly
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@each_stage
@torch.no_grad()
def test_beams_are_reordered_with_their_cache(stage: str, cache: str) -> None:
    model, tokens = adapted("gemma3", rope_stage=stage, dtype=torch.float64), random_tokens()
    beams = {"num_beams": 4, "num_return_sequences": 3, "output_scores": True}
    out = generate(model, tokens, cache_implementation=cache, **beams)
    without = generate(model, tokens, use_cache=False, **beams)
    assert out.sequences.shape[0] == 2 * 3
    assert torch.equal(out.sequences, without.sequences)
    assert relative_error(out.sequences_scores, without.sequences_scores) <= 1e-6


@needs("transformers", "5.8")
@over("helper", ["adapted", "prompt"], nightly=["bare", "itself"])
@each_stage
@torch.no_grad()
def test_assisted_decoding_is_greedy_decoding(stage: str, helper: str) -> None:
    """Rejected tokens leave the cache again, of the model and of the assistant."""
    model, tokens = adapted("llama-gqa", rope_stage=stage), random_tokens(1)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if helper != "prompt":
        assistants = {"bare": tiny_model("llama-gqa"), "itself": model.get_base_model()}
        other = adapted("qwen3", rope_stage=stage).get_base_model()
        options = {"assistant_model": assistants.get(helper, other)}
    expected = generate(model, tokens)
    actual = generate(model, tokens, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert relative_error(actual.logits, expected.logits) <= 1e-4


@slow
@each_stage
@torch.no_grad()
def test_continuous_batching(stage: str) -> None:
    """Transformers' own server loop, with pages of keys of all requests in one cache."""
    model = adapted("llama-gqa", rope_stage=stage)
    prompts = [random_tokens(1, length, seed=length) for length in (5, 12, 8)]
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    outputs = model.get_base_model().generate_batch(
        [prompt[0].tolist() for prompt in prompts],
        generation_config=config,
        progress_bar=False,
        warmup=False,
    )
    found = sorted(list(out.prompt_ids) + list(out.generated_tokens) for out in outputs.values())
    options = {"min_new_tokens": None, "eos_token_id": -1}
    alone = (generate(model, prompt, **options).sequences[0].tolist() for prompt in prompts)
    assert found == sorted(alone)


def test_the_pipeline_takes_an_adapted_model() -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_model_path(), padding_side="left")
    model = adapted("llama-gqa")
    model.get_base_model().resize_token_embeddings(len(tokenizer))
    prompts = ["Ann visits Rome. Where is Ann?", "Bob"]
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
    batched = run(prompts, batch_size=2, **options)
    for prompt, (found,) in zip(prompts, batched, strict=True):
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"]
        new = model.generate(input_ids=tokens, max_new_tokens=6, do_sample=False)
        text = tokenizer.decode(new[0, tokens.shape[1] :], skip_special_tokens=True)
        assert found["generated_text"] == text


@each_variant_nightly
@pytest.mark.parametrize("kernel", ["eager", pytest.param("flex_attention", marks=slow)])
@each_stage
@over("name", ["llama-gqa", "gemma3"], nightly=["qwen3"])
@torch.no_grad()
def test_attention_kernels_agree(name: str, stage: str, kernel: str) -> None:
    """In float32, with a padded row, over a window of 8."""
    model = adapted(name, rope_stage=stage)
    tokens = random_tokens()
    mask = torch.ones_like(tokens)
    mask[0, 9:] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    base = model.get_base_model()
    base.set_attn_implementation("sdpa")
    expected = model(**inputs).logits[mask.bool()]
    base.set_attn_implementation(kernel)
    assert relative_error(model(**inputs).logits[mask.bool()], expected) <= 1e-4


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
    together = generate(model, batch, attention_mask=mask)
    for row, alone in enumerate((short, long)):
        expected = generate(model, alone)
        assert torch.equal(together.sequences[row, -NEW:], expected.sequences[0, -NEW:])
        assert relative_error(together.logits[row], expected.logits[0]) <= 2e-5


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
