"""RoAE as PEFT knows a tuner: identity, gradients, adapters, precision, copies, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.dbrx import DbrxConfig, DbrxForCausalLM
from transformers.models.olmo import OlmoConfig, OlmoForCausalLM

from rosa import RosaConfig, RosaModel
from rosa.errors import RosaError
from rosa.roae import RosaLayer
from tests.support.adapters import (
    SMALL,
    TOKENS,
    adapted,
    adapter_state,
    gradients,
    logits,
    randomize,
    trainable,
)
from tests.support.nightly import over
from tests.support.op_variants import each_variant
from tests.support.reference import relative_error
from tests.support.tiny_models import KINDS, OTHERS, tiny_model


@each_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@over("name", KINDS, nightly=OTHERS)
def test_the_base_model_bit_for_bit_at_first_when_disabled_and_unloaded(
    name: str, dtype: torch.dtype
) -> None:
    base = logits(tiny_model(name, dtype=dtype))
    model = adapted(name, dtype=dtype, random=False)
    assert torch.equal(logits(model), base)
    randomize(model)
    assert not torch.equal(logits(model), base)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model), base)
    plain = model.unload()
    assert torch.equal(logits(plain), base)
    assert not any(isinstance(module, RosaLayer) for module in plain.modules())
    assert not any(module._forward_hooks for module in plain.modules())


@each_variant
def test_identity_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        base = logits(tiny_model("qwen3"))
        assert torch.equal(logits(adapted("qwen3", random=False)), base)


@each_variant
@over("name", KINDS, nightly=OTHERS)
def test_only_adapter_parameters_learn_and_every_one_does(name: str) -> None:
    model = adapted(name, random=False)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):  # A's gradient is zero while B is, W_GQA's as well
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    adapter = {n for n in before if "rosa_" in n or "modules_to_save" in n}
    assert changed == adapter
    assert adapter


@each_variant
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_gradient_checkpointing_gives_equal_gradients(
    name: str, reentrant: bool, ops_variant: str
) -> None:
    """To the bit; but the kernel's own SiLU is rounded otherwise than PyTorch's, which runs in a
    pass without gradients, as the first one is where checkpointing is reentrant."""
    model = adapted(name).train()
    expected = gradients(model)
    model.enable_input_require_grads()
    base = model.get_base_model()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    actual = gradients(model)
    assert actual.keys() == expected.keys()
    allowed = 1e-5 if ops_variant == "triton" and reentrant else 0.0
    for key, gradient in expected.items():
        assert relative_error(actual[key], gradient) <= allowed, key


@each_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_base_with_a_float32_adapter_and_no_autocast(dtype: torch.dtype) -> None:
    model = adapted("llama-gqa", dtype=dtype)
    own = {n: p.dtype for n, p in model.named_parameters() if p.requires_grad}
    assert set(own.values()) == {torch.float32}
    assert logits(model).dtype == dtype
    same_weights = adapted("llama-gqa", dtype=torch.float32)
    assert relative_error(logits(model).float(), logits(same_weights)) < 0.06
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_position_embeddings_by_position_equal_those_by_keyword() -> None:
    model = adapted("llama-gqa").get_base_model().model
    hidden = torch.randn(2, 5, 48)
    turns = model.rotary_emb(hidden, torch.arange(5)[None])
    attention = model.layers[0].self_attn
    by_position = attention(hidden, turns, None)[0]
    by_keyword = attention(hidden_states=hidden, position_embeddings=turns, attention_mask=None)[0]
    assert torch.equal(by_position, by_keyword)


def test_the_wrapper_shows_the_attributes_of_the_attention() -> None:
    layer = adapted("llama-gqa").get_base_model().model.layers[1].self_attn
    assert layer.q_proj is layer.base_layer.q_proj
    assert (layer.head_dim, layer.layer_idx) == (16, 1)
    assert not hasattr(layer, "weight")
    assert repr(layer).startswith("rosa.")


@each_variant
def test_an_exception_in_the_attention_leaves_nothing_behind() -> None:
    model = adapted("llama-gqa")
    expected = logits(model)
    attention = model.get_base_model().model.layers[1].self_attn.base_layer
    handle = attention.v_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model)
    handle.remove()
    hidden = torch.randn(1, 3, 48)
    weight = attention.q_proj.weight
    assert torch.equal(attention.q_proj(hidden), hidden @ weight.T)  # not modulated on its own
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_equal_and_independent(copied: Any) -> None:
    model = adapted("qwen3")
    expected = logits(model)
    copy_of_model = copied(model)
    assert torch.equal(logits(copy_of_model), expected)
    randomize(copy_of_model, seed=5)
    assert not torch.equal(logits(copy_of_model), expected)
    assert torch.equal(logits(model), expected)
    assert torch.equal(logits(copy_of_model.unload()), logits(tiny_model("qwen3")))
    assert torch.equal(logits(model), expected)  # its hooks are its own


@each_variant
def test_adapters_of_different_shape_are_switched_and_deleted() -> None:
    configs = {
        "default": RosaConfig(**SMALL),
        "a": RosaConfig(r=3, r_low=1.0, alpha=0.2, rope_stage="pre"),
        "ab": RosaConfig(r=5, layers_to_transform=[1], train_norms=False),
    }
    model = get_peft_model(tiny_model("llama-gqa"), configs["default"]).eval()
    model.add_adapter("a", configs["a"])
    model.add_adapter("ab", configs["ab"])
    alone: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(configs):
        model.set_adapter(name)
        randomize(model, seed=seed)
        single = get_peft_model(tiny_model("llama-gqa"), configs[name]).eval()
        randomize(single, seed=seed)
        alone[name] = logits(single)
        assert {key.replace(f".{name}.", ".default.") for key in trainable(model)} == trainable(
            single
        )
    for name in ("a", "ab", "default", "ab", "a"):
        model.set_adapter(name)
        assert torch.equal(logits(model), alone[name])
    model.delete_adapter("a")
    model.set_adapter("ab")
    assert not any(".a." in key for key, _ in model.named_parameters())
    assert torch.equal(logits(model), alone["ab"])
    model.delete_adapter("ab")
    model.set_adapter("default")
    assert torch.equal(logits(model), alone["default"])


def test_layers_are_found_in_a_model_without_a_head() -> None:
    """Whose names, "layers.1.self_attn", PEFT's own rule does not read."""
    model = get_peft_model(
        tiny_model("llama-gqa").model, RosaConfig(**SMALL, layers_to_transform=1)
    )
    assert trainable(model)
    assert all("model.layers.1." in name for name in trainable(model))


def test_an_unloaded_model_can_be_adapted_again() -> None:
    plain = adapted("gemma3").unload()
    again = get_peft_model(plain, RosaConfig(**SMALL)).eval()
    randomize(again)
    assert torch.equal(logits(again), logits(adapted("gemma3")))


def test_the_norms_of_each_architecture() -> None:
    names = {"llama-gqa": 2, "mistral": 2, "qwen2": 2, "qwen3": 2, "gemma2": 4, "gemma3": 4}
    for name, count in names.items():
        norms = {key for key in adapter_state(adapted(name)) if "rosa_" not in key}
        assert len(norms) == 2 * count  # two layers
        assert not any("q_norm" in key or "k_norm" in key for key in norms)
    assert all("rosa_" in key for key in adapter_state(adapted("gemma2", train_norms=False)))


def test_injection_without_a_peft_model() -> None:
    model = inject_adapter_in_model(RosaConfig(**SMALL), tiny_model("qwen2"))
    assert torch.equal(logits(model), logits(tiny_model("qwen2")))
    assert isinstance(model.model.layers[0].self_attn, RosaLayer)


def test_with_lora_on_the_feed_forward() -> None:
    model = tiny_model("llama-gqa")
    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"]), model, "lora")
    with pytest.warns(UserWarning, match="peft_config"):
        both = RosaModel(model, RosaConfig(**SMALL), "default")
    assert torch.equal(logits(both), logits(tiny_model("llama-gqa")))


def test_a_model_without_rope_raises() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=32))
    with pytest.raises(RosaError, match=r"gpt2.*has no rotary position embeddings"):
        get_peft_model(gpt2, RosaConfig())


def test_a_rotation_that_cannot_be_measured_raises_with_the_reason() -> None:
    """DBRX clips its queries and keys between the projection and the rotation."""
    config = DbrxConfig(
        d_model=16, n_heads=2, n_layers=1, max_seq_len=32, vocab_size=64,
        attn_config={"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 1e4},
        ffn_config={"hidden_size": 16, "ffn_hidden_size": 16, "moe_num_experts": 2,
                    "moe_top_k": 1},
    )  # fmt: skip
    with pytest.raises(RosaError, match=r"cannot adapt dbrx.*queries.*changes them between"):
        get_peft_model(DbrxForCausalLM(config), RosaConfig())


def test_a_known_architecture_that_clips_its_queries_raises() -> None:
    config = OlmoConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16,
        vocab_size=32, pad_token_id=0, clip_qkv=8.0,
    )  # fmt: skip
    with pytest.raises(RosaError, match=r"olmo model cannot be adapted: it clips.*clip_qkv=8\.0"):
        get_peft_model(OlmoForCausalLM(config), RosaConfig())


def test_an_r_low_too_small_for_the_head_raises() -> None:
    with pytest.raises(RosaError, match=r"r_low=0\.05 .*head_dim=16; use r_low >= 0\.125"):
        get_peft_model(tiny_model("llama-gqa"), RosaConfig(r_low=0.05))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"target_modules": ["q_proj"]}, r"target_modules=\['q_proj'\].*layers\.0\.self_attn"),
        ({"target_modules": r".*\.mlp"}, r"target_modules='.*mlp'"),
        ({"exclude_modules": ["self_attn"]}, r"exclude_modules=\['self_attn'\]"),
        ({"layers_to_transform": [1, 7]}, "names layer 7.*end with model.layers.1.self_attn"),
        ({"layers_to_transform": 7}, "layers_to_transform=7"),
    ],
)
def test_a_choice_that_matches_nothing_raises(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RosaError, match=sentence):
        get_peft_model(tiny_model("llama-gqa"), RosaConfig(**config))


def test_a_model_that_raises_is_unchanged() -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(RosaError):
        get_peft_model(model, RosaConfig(r_low=0.05))
    assert not any(isinstance(module, RosaLayer) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(logits(model), logits(tiny_model("llama-gqa")))
