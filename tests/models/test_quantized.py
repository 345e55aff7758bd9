"""RoSA on bases of 4 and 8 bits (bitsandbytes and torchao, on the CPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.errors import RosaError
from rosa.rope import layout_of
from rosa.rope.probe import probe_layouts
from tests.support.adapters import adapter_state, randomize
from tests.support.architectures import BY_NAME
from tests.support.quantized import (
    SMALL,
    TOKENS,
    adapted,
    each_dtype,
    each_quantizer,
    logits,
    portable_kernels,
    quantized,
    stored,
    trainable,
    write_folder,
    written_folder,
)
from tests.support.reference import relative_error

_kernels, folder = portable_kernels, written_folder


def losses(model: nn.Module, steps: int = 20) -> list[float]:
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=3e-2, weight_decay=0.0)
    found = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


# Attached


@each_quantizer
@each_dtype
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox", "glm"])
def test_the_quantized_base_bit_for_bit_at_first_disabled_and_unloaded(
    name: str, dtype: torch.dtype, bits: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, name)
    base = logits(quantized(folder, bits, dtype))
    model = adapted(folder, bits, dtype)
    assert torch.equal(logits(model), base)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32}
    randomize(model)
    assert not torch.equal(logits(model), base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model.unload()), base)


@each_quantizer
@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt_neox", "glm", "gptj"])
def test_an_unknown_architecture_is_measured_on_quantized_weights(
    name: str, bits: str, tmp_path: Path
) -> None:
    model = quantized(write_folder(tmp_path, name), bits)
    layouts = {name: layout_of(module) for name, module in model.named_modules()}
    assert probe_layouts(model) == {name: layout for name, layout in layouts.items() if layout}


def test_sizes_that_4_bits_do_not_take_cannot_be_detected(tmp_path: Path) -> None:
    """bitsandbytes packs only multiples of 32 for CPUs that compute in bfloat16."""
    model = quantized(write_folder(tmp_path, "deepseek_v3"), "nf4")
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    with pytest.raises(RosaError, match=r"cannot detect: .*does not run on token ids .*divisible"):
        get_peft_model(model, RosaConfig(**SMALL))


@each_quantizer
def test_as_many_parameters_as_of_the_base_in_full(folder: Path, bits: str) -> None:
    full = get_peft_model(BY_NAME["llama"].build(), RosaConfig(**SMALL))
    model = adapted(folder, bits)
    assert model.get_nb_trainable_parameters() == full.get_nb_trainable_parameters()


@each_quantizer
def test_merging_raises(folder: Path, bits: str) -> None:
    for merge in ("merge_and_unload", "merge_adapter"):
        with pytest.raises(RosaError, match="cannot be merged"):
            getattr(adapted(folder, bits), merge)()


# Trained


@each_quantizer
@each_dtype
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["bare", "kbit", "kbit-gc"])
def test_only_the_adapter_learns(
    folder: Path, bits: str, dtype: torch.dtype, checkpointing: bool | None
) -> None:
    model = quantized(folder, bits, dtype)
    if checkpointing is not None:
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    model = get_peft_model(model, RosaConfig(**SMALL))
    weights_before = stored(model)
    others = {n: p.clone() for n, p in model.named_parameters() if type(p.data) is Tensor}
    assert weights_before
    found = losses(model)
    assert found[-1] < 0.9 * found[0]
    assert all(torch.equal(stored(model)[name], tensor) for name, tensor in weights_before.items())
    now = dict(model.named_parameters())
    changed = {name for name, before in others.items() if not torch.equal(now[name], before)}
    assert changed == set(trainable(model))
    assert all(".default." in name for name in changed)


@pytest.mark.parametrize("use_reentrant", [True, False])
@each_quantizer
def test_gradient_checkpointing_gives_equal_gradients(
    folder: Path, bits: str, use_reentrant: bool
) -> None:
    found = []
    for checkpointing in (False, True):
        model = prepare_model_for_kbit_training(
            quantized(folder, bits),
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": use_reentrant},
        )
        torch.manual_seed(0)
        model = get_peft_model(model, RosaConfig(**SMALL)).train()
        randomize(model)
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        found.append({name: parameter.grad for name, parameter in trainable(model).items()})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(found[1][name], gradient), name


@each_quantizer
def test_layers_that_are_not_chosen_stay_bit_identical(folder: Path, bits: str) -> None:
    model = prepare_model_for_kbit_training(
        quantized(folder, bits), use_gradient_checkpointing=False
    )
    model = get_peft_model(model, RosaConfig(**SMALL)).train()
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=1e-2, weight_decay=0.1)
    config = DlsConfig(interval=2, warmup=0, p_exploit=0.5)
    dls = DynamicLayerSelection(model, optimizer, config, total_steps=12)
    seen = set()
    for _ in range(12):
        before = {name: p.detach().clone() for name, p in trainable(model).items()}
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if dls.selected is None:
            continue
        seen.add(tuple(dls.selected))
        for name, old in before.items():
            chosen = int(name.split(".layers.")[1].split(".")[0]) in dls.selected
            assert torch.equal(dict(model.named_parameters())[name], old) != chosen, name
    assert len(seen) == 2


# Generation and files


@each_quantizer
@each_dtype
def test_generation_with_a_cache_equals_recomputation(
    folder: Path, bits: str, dtype: torch.dtype
) -> None:
    model = adapted(folder, bits, dtype).eval()
    randomize(model)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "output_logits": True,
                               "return_dict_in_generate": True}  # fmt: skip
    cached = model.generate(input_ids=TOKENS[:, :4], **options)
    again = model.generate(input_ids=TOKENS[:, :4], use_cache=False, **options)
    assert torch.equal(cached.sequences, again.sequences)
    tolerance = 2e-2 if dtype == torch.bfloat16 or bits == "int8" else 1e-5
    for one, other in zip(cached.logits, again.logits, strict=True):
        assert relative_error(one.float(), other.float()) < tolerance


@each_quantizer
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded(folder: Path, bits: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    model = adapted(folder, bits)
    randomize(model)
    model.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    fresh = PeftModel.from_pretrained(quantized(folder, bits), tmp_path, **options)
    assert torch.equal(logits(fresh), logits(model))
    # Onto the base in full precision: the same tensors, on other weights below them.
    full = PeftModel.from_pretrained(BY_NAME["llama"].build().float(), tmp_path, **options)
    expected = adapter_state(model)
    for name, tensor in adapter_state(full).items():
        assert torch.equal(tensor, expected[name]), name
    assert 0 < relative_error(logits(full), logits(model)) < 1
