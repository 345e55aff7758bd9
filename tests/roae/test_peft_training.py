"""PEFT's contract: precision, the meta device, gradient checkpointing and calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM

from tests.support.adapters import randomize, trainable
from tests.support.peft_models import (
    CONFIGS,
    TOKENS,
    base,
    config,
    each_kind,
    gradients,
    logits,
    of,
    wrapped,
)
from tests.support.versions import needs


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_without_autocast(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = wrapped(kind, dtype=dtype)
    assert {p.dtype for n, p in model.named_parameters() if n in trainable(model)} == {
        torch.float32
    }
    assert logits(model).dtype == dtype
    found = gradients(model)
    assert found.keys() == trainable(model)
    assert all(gradient.isfinite().all() for gradient in found.values())
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}):
        loaded = PeftModel.from_pretrained(base(kind, dtype), tmp_path, **options)
        loaded.load_adapter(tmp_path, "second", **options)
        for name in ("default", "second"):
            loaded.set_adapter(name)
            assert torch.equal(logits(loaded), logits(model)), (options, name)


@needs("peft", "0.19")
@each_kind
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_adapters_in_the_precision_of_the_base(
    kind: str, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    options = {"autocast_adapter_dtype": False}
    model = get_peft_model(base(kind, torch.bfloat16), config(), **options)
    model.add_adapter("added", config(r=2), **options)
    wrapped(kind).save_pretrained(tmp_path)  # in float32
    options["low_cpu_mem_usage"] = low_cpu_mem_usage
    model.load_adapter(tmp_path, "loaded", **options)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name in ("default", "added", "loaded"):
        model.set_adapter(name)
        assert gradients(model).keys() == of(name, model)
    assert model.to(torch.float16)(input_ids=TOKENS).logits.dtype == torch.float16


@each_kind
def test_injection_on_the_meta_device(kind: str, tmp_path: Path) -> None:
    model = wrapped(kind)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(kind), tmp_path, low_cpu_mem_usage=True)
    loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=True)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    for name in ("default", "other"):
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))
    injected = inject_adapter_in_model(config(), base(kind), low_cpu_mem_usage=True)
    assert {p.device.type for n, p in injected.named_parameters() if "rosa_" in n} == {"meta"}
    assert not any(p.is_meta for n, p in injected.named_parameters() if "rosa_" not in n)
    state = get_peft_model_state_dict(inject_adapter_in_model(config(), base(kind)))
    for name, tensor in get_peft_model_state_dict(model).items():
        state[name.removeprefix("base_model.model.")] = tensor
    set_peft_model_state_dict(injected, state, low_cpu_mem_usage=True)
    assert torch.equal(logits(injected), logits(model))


@each_kind
def test_an_adapter_is_loaded_where_the_base_is(kind: str, tmp_path: Path) -> None:
    """Whatever device its file is read to; of two devices there are only "cpu" and "meta" here."""
    wrapped(kind).save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[kind]())
    model = get_peft_model(model, config(), low_cpu_mem_usage=True)
    model.load_adapter(tmp_path, "other", torch_device="cpu", low_cpu_mem_usage=True)
    assert {p.device.type for p in model.parameters()} == {"meta"}


@each_kind
def test_prepared_for_training_on_few_bits(kind: str) -> None:
    prepared = prepare_model_for_kbit_training(base(kind, torch.bfloat16))
    model = get_peft_model(prepared, config()).train()
    randomize(model)
    assert gradients(model).keys() == trainable(model) == of("default", model)


@each_kind
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(kind: str, reentrant: bool) -> None:
    model = wrapped(kind).train()
    expected = gradients(model)
    model.prepare_model_for_gradient_checkpointing(model)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(actual[name], gradient), name


@each_kind
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@torch.no_grad()
def test_generate_by_position_and_by_keyword(kind: str, task_type: str | None) -> None:
    model = wrapped(kind, task_type=task_type)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    by_keyword = model.generate(input_ids=TOKENS, **options)
    assert torch.equal(model.generate(TOKENS, **options), by_keyword)
    assert torch.equal(model.base_model.generate(TOKENS, **options), by_keyword)
    assert not torch.equal(base(kind).generate(TOKENS, **options), by_keyword)


@each_kind
@torch.no_grad()
def test_input_embeddings_instead_of_tokens(kind: str) -> None:
    model = wrapped(kind)
    embedded = model.get_input_embeddings()(TOKENS)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, logits(model))
