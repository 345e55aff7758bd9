"""DyPAM as PEFT knows a tuner: adapters, saving, precision, decoding, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from safetensors import safe_open

from rosa import DypamConfig, RosaConfig
from rosa.dypam import DypamLayer
from rosa.errors import RosaError
from tests.support.adapters import TOKENS, gradients, logits, randomize, trainable
from tests.support.dypam_reference import factors
from tests.support.op_variants import each_variant
from tests.support.reference import relative_error
from tests.support.tiny_models import tiny_model

SMALL: dict[str, Any] = {"r": 6, "feature_dim": 5, "alpha": 1.5}


def adapted(name: str, *, dtype: torch.dtype = torch.float32, **config: Any) -> PeftModel:
    model = get_peft_model(tiny_model(name, dtype=dtype), DypamConfig(**{**SMALL, **config})).eval()
    randomize(model)
    return model


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama-gqa", "llama-mha", "gemma3"])
def test_the_base_model_bit_for_bit_at_first_when_disabled_and_unloaded(
    name: str, dtype: torch.dtype
) -> None:
    plain = tiny_model(name, dtype=dtype)
    base = logits(plain)
    model = get_peft_model(plain, DypamConfig(**SMALL)).eval()
    assert torch.equal(logits(model), base)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(model), logits(tiny_model(name, dtype=dtype)))
    randomize(model)
    assert relative_error(logits(model).float(), base.float()) > 0.01
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    if dtype == torch.bfloat16:
        assert relative_error(logits(model).float(), logits(adapted(name))) < 0.1
    unloaded = model.unload()
    assert torch.equal(logits(unloaded), base)
    assert not any(isinstance(m, DypamLayer) or m._forward_hooks for m in unloaded.modules())


def test_the_signal_is_that_of_the_equations_and_its_factor_is_bounded() -> None:
    model = adapted("llama-gqa", dtype=torch.float64).base_model
    layer = model.model.model.layers[1].self_attn
    hidden = torch.randn(2, 7, 48, dtype=torch.float64)
    prefix, own = "dypam_", dict(layer.named_parameters())
    weights = {
        key.removeprefix(prefix).replace(".default", ""): value
        for key, value in own.items()
        if key.startswith(prefix)
    }
    expected = factors(weights, hidden, key_heads=2, alpha=1.5)
    for side, signal in zip("qk", layer.signals("default", 100 * hidden), strict=True):
        assert (1.5 * signal).abs().max() <= 0.75
        assert (1.5 * signal).abs().max() > 0.7  # it comes near its bound
        assert expected[side].shape[-1] == 8  # every pair of a head of 16
    for side, signal in zip("qk", layer.signals("default", hidden), strict=True):
        real, imaginary = (1 + 1.5 * signal).transpose(1, 2).chunk(2, dim=-1)
        assert torch.equal(real, imaginary)
        assert relative_error(real, expected[side]) < 1e-12


@each_variant
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(reentrant: bool) -> None:
    model = adapted("gemma3").train()
    expected = gradients(model)
    model.enable_input_require_grads()
    base = model.get_base_model()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    actual = gradients(model)
    assert actual.keys() == expected.keys() == trainable(model)
    assert all(relative_error(actual[key], expected[key]) <= 1e-6 for key in expected)


def test_gradients_equal_those_of_the_plain_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("qwen3", dtype=torch.float64)
    actual = gradients(model)
    monkeypatch.setattr("rosa.ops.variants._from_environment", "reference")
    for key, gradient in gradients(model).items():
        assert relative_error(actual[key], gradient) <= 1e-9, key


def test_from_the_start_b_and_the_biases_learn_and_after_a_step_all() -> None:
    model = get_peft_model(tiny_model("llama-gqa"), DypamConfig(**SMALL))
    first = {key for key, gradient in gradients(model).items() if gradient.abs().max() > 0}
    assert {key.split("dypam_")[1].split(".")[0] for key in first} == {
        "B", "E_q", "E_k", "head_q", "head_k",
    }  # fmt: skip
    assert not any("E_" in key and key.endswith("weight") for key in first)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    optimizer.step()
    assert all(gradient.abs().max() > 0 for gradient in gradients(model).values())


def test_generation_with_the_cache_equals_that_without() -> None:
    for name in ("llama-gqa", "gemma3"):  # sliding windows too
        model = adapted(name, dtype=torch.float64)
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        cached, plain = (
            model.generate(input_ids=TOKENS, use_cache=use_cache, **options)
            for use_cache in (True, False)
        )
        assert torch.equal(cached, plain)


def test_adapters_are_switched_deleted_and_loaded(tmp_path: Path) -> None:
    model = adapted("llama-gqa")
    model.add_adapter("b", DypamConfig(r=3, feature_dim=2, layers_to_transform=[1]))
    model.set_adapter("b")
    randomize(model, seed=2)
    assert trainable(model)
    assert all(".b." in key and ".layers.1." in key for key in trainable(model))
    first, second = adapted("llama-gqa"), logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), logits(first))
    model.save_pretrained(tmp_path)
    model.delete_adapter("default")
    assert torch.equal(logits(model), second)
    model.load_adapter(tmp_path / "b", "again")
    model.set_adapter("again")
    assert torch.equal(logits(model), second)
    loaded = PeftModel.from_pretrained(tiny_model("llama-gqa"), tmp_path)
    assert torch.equal(logits(loaded), logits(first))


def test_the_auto_class_loads_it_and_modules_to_save(tmp_path: Path) -> None:
    base = tiny_model("qwen2")
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    config = DypamConfig(**SMALL, task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    model = get_peft_model(base, config).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.peft_config["default"].feature_dim == 5


def test_the_file_holds_the_adapter_only_under_the_documented_names(tmp_path: Path) -> None:
    adapted("llama-gqa").save_pretrained(tmp_path)  # 4 query heads, 2 key heads of 8 pairs
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        shapes = {key: tuple(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
    layer = {
        "A.weight": (6, 48),
        "B.weight": (20, 6),
        "E_q.weight": (8, 5), "E_q.bias": (8,), "head_q.bias": (4, 8),
        "E_k.weight": (8, 5), "E_k.bias": (8,), "head_k.bias": (2, 8),
    }  # fmt: skip
    prefix = "base_model.model.model.layers"
    assert shapes == {
        f"{prefix}.{i}.self_attn.dypam_{key}": shape
        for i in range(2)
        for key, shape in layer.items()
    }


def test_with_lora_on_the_feed_forward() -> None:
    base = tiny_model("llama-gqa")
    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"]), base, "lora")
    with pytest.warns(UserWarning, match="peft_config"):
        model = get_peft_model(base, DypamConfig(**SMALL), adapter_name="second").eval()
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda m: m.merge_and_unload(), "a DyPAM adapter depends on its input"),
        (lambda m: m.merge_adapter(), "cannot be merged"),
        (lambda m: m.add_weighted_adapter(["default"], [1.0], "x"), "DyPAM adapters cannot"),
        (lambda m: m.base_model.set_adapter(["default", "b"]), "DyPAM runs one adapter at a time"),
        (lambda m: get_peft_model(m.get_base_model(), RosaConfig(), "x"), "has a DyPAM adapter"),
    ],
)
def test_what_cannot_work_raises(act: Any, sentence: str) -> None:
    model = adapted("llama-gqa")
    model.add_adapter("b", DypamConfig(**SMALL))
    with pytest.raises(RosaError, match=sentence):
        act(model)


def test_dypam_on_a_model_with_rosa_raises_and_leaves_it_as_it_was() -> None:
    model = get_peft_model(tiny_model("llama-gqa"), RosaConfig(r=2)).get_base_model()
    with pytest.raises(RosaError, match="has a RoSA adapter, and DyPAM would"):
        get_peft_model(model, DypamConfig(), adapter_name="second")
    assert not any(isinstance(module, DypamLayer) for module in model.modules())


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"feature_dim": 1.5}, "feature_dim must be a whole number"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"init_weights": "no"}, "init_weights must be True or False"),
        ({"layers_to_transform": [-1]}, "layers_to_transform must hold layer indices"),
    ],
)
def test_a_value_out_of_range_raises(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RosaError, match=sentence):
        DypamConfig(**keys)
