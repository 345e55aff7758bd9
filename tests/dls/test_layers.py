"""DLS: where the decoder layers are, which norms count, and what raises an error."""

from __future__ import annotations

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, get_peft_model
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rosa.dls.layers import active_copy, find_decoder_layers, scored_norms, scored_parameters
from rosa.errors import RosaError
from tests.support.dls_models import NORMS as LLAMA
from tests.support.dls_models import decoder_layers, tiny_llama
from tests.support.tiny_models import VARIANTS, tiny_model

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}


def from_config(model_type: str, **changes: object) -> nn.Module:
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**{**SMALL, **changes}))


GEMMA = ["input_layernorm", "pre_feedforward_layernorm"]


@pytest.mark.parametrize("name", VARIANTS)
def test_layers_and_norms_of_the_supported_architectures(name: str) -> None:
    model = tiny_model(name)
    if name == "gemma3-multimodal":
        model.model.vision_tower.requires_grad_(False)
    found = find_decoder_layers(model)
    assert found.path.endswith("layers")
    assert "vision" not in found.path
    expected = GEMMA if name.startswith("gemma") else LLAMA
    assert [list(scored_norms(layer)) for layer in found.layers] == [expected] * 2


@pytest.mark.parametrize(
    ("model_type", "changes", "norms"),
    [
        ("phi", {}, ["input_layernorm"]),  # attention and feed-forward side by side
        ("cohere", {}, ["input_layernorm"]),
        ("olmo2", {}, ["post_attention_layernorm", "post_feedforward_layernorm"]),
        ("glm4", {"head_dim": 8}, LLAMA),
        ("gpt_neox", {}, LLAMA),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}, ["ln_1", "ln_2"]),
        ("opt", {"ffn_dim": 16}, ["self_attn_layer_norm", "final_layer_norm"]),
    ],
)
def test_norms_of_other_kinds_of_layer(model_type: str, changes: dict, norms: list[str]) -> None:
    found = find_decoder_layers(from_config(model_type, **changes))
    assert len(found.layers) == 2
    assert sorted(scored_norms(found.layers[0])) == sorted(norms)


def test_norms_without_weight_raise() -> None:
    found = find_decoder_layers(from_config("olmo"))
    with pytest.raises(RosaError, match=r"model\.layers\.0.*no weight.*without DLS"):
        scored_parameters(found.layers[0], f"{found.path}.0")


def test_both_towers_trained_means_the_decoder() -> None:
    found = find_decoder_layers(tiny_model("gemma3-multimodal"))
    assert "language_model" in found.path


def test_the_copy_that_peft_trains_is_the_one_that_counts() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=LLAMA)
    model = get_peft_model(tiny_llama(), config)
    layer = decoder_layers(model)[3]
    wrapper = layer.input_layernorm
    assert active_copy(wrapper) is wrapper.modules_to_save["default"]
    counted = scored_parameters(layer, "3")
    assert [p.requires_grad for p in counted] == [True, True]

    model.add_adapter("second", config)
    model.set_adapter("second")
    assert active_copy(wrapper) is wrapper.modules_to_save["second"]


def test_ln_tuning_s_copy_counts() -> None:
    model = get_peft_model(
        tiny_llama(), LNTuningConfig(task_type="CAUSAL_LM", target_modules=LLAMA)
    )
    layer = decoder_layers(model)[0]
    assert active_copy(layer.input_layernorm) is layer.input_layernorm.ln_tuning_layers["default"]


def test_bias_of_a_norm_counts_too() -> None:
    layer = find_decoder_layers(from_config("gpt_neox")).layers[0]
    assert len(scored_parameters(layer, "0")) == 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.linear, self.norm2 = nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4)


class TwoStacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(Block() for _ in range(2))
        self.right = nn.ModuleList(Block() for _ in range(2))


def test_several_possible_lists_raise_until_one_is_trained() -> None:
    model = TwoStacks()
    with pytest.raises(RosaError, match="left or right: leave only one of them trainable"):
        find_decoder_layers(model)
    model.left.requires_grad_(False)
    assert find_decoder_layers(model).path == "right"


def test_no_list_of_layers_raises() -> None:
    with pytest.raises(RosaError, match="no list of decoder layers in Sequential"):
        find_decoder_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_nothing_trainable_in_the_layers_raises() -> None:
    model = tiny_llama()
    model.model.layers.requires_grad_(False)
    with pytest.raises(RosaError, match=r"no trainable parameter.*\(model\.layers\)"):
        find_decoder_layers(model)


def test_experts_inside_a_layer_are_not_layers() -> None:
    class WithExperts(Block):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(Block() for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(WithExperts() for _ in range(2))
    found = find_decoder_layers(model)
    assert found.path == "layers"
    assert found.ancestors(model) == [model]


def test_ancestors_go_from_the_model_to_the_owner_of_the_list() -> None:
    model = get_peft_model(tiny_llama(torch.float32), LoraConfig(r=2, target_modules=["q_proj"]))
    found = find_decoder_layers(model)
    assert found.path == "base_model.model.model.layers"
    assert found.ancestors(model) == [
        model,
        model.base_model,
        model.get_base_model(),
        model.get_base_model().model,
    ]
    assert found.owner is model.get_base_model().model
