"""Sequences packed into one row: each as if it were alone, in outputs and in gradients.

What tells sequences apart is `position_ids` that restart, from which Transformers makes a mask, or
`cu_seq_lens`, which FlashAttention takes instead. A CPU has no FlashAttention: here a kernel is
registered that does what its variable-length form does, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AttentionInterface, AutoTokenizer, DataCollatorWithFlattening
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rosa import RosaConfig, tiny_model_path
from tests.support.adapters import SMALL, randomize
from tests.support.architectures import BY_NAME
from tests.support.nightly import each_stage, over
from tests.support.op_variants import each_variant_nightly
from tests.support.reference import relative_error
from tests.support.tiny_models import random_tokens

LENGTHS = (5, 7, 3)
VARLEN = "one_sequence_at_a_time"
each_model = over(
    "name", ["llama", "gemma3_text", "phi3"], nightly=["qwen3", "mistral", "cohere", "deepseek_v3"]
)
calls: list[Tensor] = []  # the boundaries that the kernel was given, one for each call


def varlen_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attends within each span of `cu_seq_lens_q`. q, k, v (1, heads, total, head_dim)."""
    assert q.shape[0] == 1
    assert mask is None
    bounds = kwargs.pop("cu_seq_lens_q")
    calls.append(bounds)
    spans = zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    window = kwargs.pop("sliding_window", None)
    outputs = []
    for start, end in spans:
        one = (x[:, :, start:end] for x in (q, k, v))
        length = end - start
        distance = torch.arange(length)[:, None] - torch.arange(length)
        allowed = (distance >= 0) & (distance < (window or length + 1))
        outputs.append(sdpa_attention_forward(module, *one, allowed[None, None], **kwargs)[0])
    return torch.cat(outputs, dim=1), None


@pytest.fixture
def varlen() -> str:
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)
    calls.clear()
    return VARLEN


def adapted(name: str, stage: str) -> PeftModel:
    model = get_peft_model(BY_NAME[name].build(), RosaConfig(**SMALL, rope_stage=stage)).train()
    randomize(model)
    return model


def sequences() -> list[Tensor]:
    return [random_tokens(1, length, seed=length)[0] for length in LENGTHS]


def flattened(**options: Any) -> dict[str, Any]:
    """Transformers' own collator's row of all sequences, (1, total)."""
    rows = [{"input_ids": tokens.tolist()} for tokens in sequences()]
    return dict(DataCollatorWithFlattening(return_tensors="pt", **options)(rows))


def step(model: PeftModel, *batches: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (1, total, vocabulary) of all batches, and gradients of a sum over all of them."""
    model.zero_grad()
    outputs = [model(**batch, use_cache=False).logits for batch in batches]
    logits = torch.cat(outputs, dim=1)
    logits.square().sum().backward()
    named = model.named_parameters()
    return logits.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def assert_as_alone(model: PeftModel, packed: dict[str, Any], change: Callable = id) -> None:
    """Logits and gradients of a packed row are those of the sequences, run one by one."""
    logits, gradients = step(model, *({"input_ids": tokens[None]} for tokens in sequences()))
    change(model)
    packed.pop("labels", None)
    packed_logits, packed_gradients = step(model, packed)
    # Angles are float32: of a position they are the same in every row.
    assert relative_error(packed_logits, logits) <= 1e-6
    assert packed_gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert relative_error(packed_gradients[key], gradient) <= 1e-5, key


@each_variant_nightly
@each_stage
@each_model
def test_positions_that_restart(name: str, stage: str) -> None:
    assert_as_alone(adapted(name, stage), flattened())


@each_variant_nightly
@each_stage
@each_model
def test_boundaries_without_a_mask(name: str, stage: str, varlen: str) -> None:
    """The inputs that FlashAttention gets: one row with `cu_seq_lens`, no mask."""
    packed = flattened(return_flash_attn_kwargs=True)
    model = adapted(name, stage)
    assert_as_alone(model, packed, lambda m: m.get_base_model().set_attn_implementation(varlen))
    assert len(calls) == 2
    assert calls[0].tolist() == [0, 5, 12, 15]


@each_variant_nightly
@each_stage
def test_boundaries_with_gradient_checkpointing(stage: str, varlen: str) -> None:
    def change(model: PeftModel) -> None:
        base = model.get_base_model()
        base.set_attn_implementation(varlen)
        base.gradient_checkpointing_enable()

    packed = flattened(return_flash_attn_kwargs=True)
    assert_as_alone(adapted("llama", stage), packed, change)
    assert len(calls) == 2 * 2  # the backward pass runs each layer again


def test_positions_that_do_not_restart_are_another_row() -> None:
    """What the tests above would miss if positions did not matter."""
    model = adapted("llama", "post").eval()
    packed = flattened()
    ignored = {"input_ids": packed["input_ids"]}
    here, there = (step(model, batch)[0] for batch in (ignored, packed | {"labels": None}))
    assert relative_error(here, there) > 1e-2


@each_stage
def test_trl_without_padding(stage: str) -> None:
    """The batch of TRL's collator for `padding_free` (and for `packing`, which implies it)."""
    rows = [{"input_ids": tokens.tolist()} for tokens in sequences()]
    packed = dict(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(rows))
    assert packed["position_ids"].tolist() == [[*range(5), *range(7), *range(3)]]
    assert_as_alone(adapted("llama", stage), packed)


@over(
    "options",
    [{"packing": True, "max_length": 64}],
    nightly=[{"padding_free": True, "max_length": None}],
)
def test_trl_trains_as_with_padding(options: dict[str, Any], tmp_path: Path) -> None:
    """The first loss of SFTTrainer on packed rows is that on padded rows of the same sequences."""
    path = tiny_model_path()
    text = ["Ann visits Rome.", "Bob has a red car and a dog.", "Where is Ann? In Rome."]
    losses = []
    for arguments in ({}, options):
        config = SFTConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none", bf16=False,
            logging_steps=1, learning_rate=1e-3, use_cpu=True, save_strategy="no",
            model_init_kwargs={"attn_implementation": "sdpa", "dtype": "float32"},
            gradient_checkpointing=False, seed=0, **arguments,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=path,
            args=config,
            processing_class=AutoTokenizer.from_pretrained(path),
            train_dataset=Dataset.from_dict({"text": text}),
            peft_config=RosaConfig(**SMALL),
        )
        randomize(trainer.model)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
