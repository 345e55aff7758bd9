"""PEFT's contract: which modules are adapted, trained in full and saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils import AuxiliaryTrainingWrapper
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from rosa.errors import RosaError
from rosa.roae import RosaLayer
from tests.support.adapters import adapter_state, randomize, trainable
from tests.support.peft_models import (
    CONFIGS,
    WEIGHTS,
    base,
    config,
    each_kind,
    each_kind_tied_or_not,
    gradients,
    layer_of,
    logits,
    of,
    wrapped,
)


@each_kind
def test_only_adapter_parameters_get_gradients_and_every_one_does(kind: str) -> None:
    model = wrapped(kind)
    found = gradients(model)
    assert found.keys() == trainable(model) == of("default", model)
    assert all(gradient.abs().sum() > 0 for gradient in found.values())


@each_kind
def test_layers_to_transform_limits_the_norms_too(kind: str) -> None:
    everywhere = len(trainable(wrapped(kind)))
    model = wrapped(kind, layers_to_transform=[1])
    assert {layer_of(name) for name in trainable(model)} == {1}
    assert len(trainable(model)) == everywhere / 2
    assert gradients(model).keys() == trainable(model)
    assert {layer_of(key) for key in adapter_state(model)} == {1}


@each_kind
def test_exclude_modules(kind: str) -> None:
    attention = "attn" if kind == "gptj" else "self_attn"
    whole = len(trainable(wrapped(kind)))
    for excluded in ([f"0.{attention}"], rf".*\.0\.{attention}"):
        model = wrapped(kind, exclude_modules=excluded)
        assert {layer_of(name) for name in trainable(model)} == {1}
    norm = "ln_1" if kind == "gptj" else "input_layernorm"
    model = wrapped(kind, exclude_modules=[norm])
    assert len(trainable(model)) == whole - (4 if kind == "gptj" else 2)  # GPT-J's has a bias
    assert not any(norm in name for name in trainable(model))
    with pytest.warns(UserWarning, match="no modules were excluded"):
        wrapped(kind, exclude_modules=["nowhere"])


@each_kind_tied_or_not
def test_modules_to_save(kind: str, tmp_path: Path) -> None:
    head = "lm_head"
    model = wrapped(kind, modules_to_save=[head])
    assert any(head in name for name in trainable(model))
    assert gradients(model).keys() == trainable(model)
    model.save_pretrained(tmp_path)
    assert any(head in key for key in load_file(tmp_path / WEIGHTS))
    loaded = PeftModel.from_pretrained(base(kind), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert trainable(loaded) == set()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base(kind)))


@each_kind
def test_modules_to_save_that_do_not_exist_or_lie_inside_an_adapted_attention(kind: str) -> None:
    model = base(kind)
    inside = "attn.v_proj" if kind == "gptj" else "self_attn.v_proj"
    with pytest.raises(
        RosaError, match=r"modules_to_save names 'lm_heads'.*did you mean 'lm_head'"
    ):
        get_peft_model(model, config(modules_to_save=["lm_head", "lm_heads"]))
    for name in ("v_proj", inside):
        with pytest.raises(RosaError, match=rf"modules_to_save names '{name}'.*{inside}.*inside"):
            get_peft_model(model, config(modules_to_save=[name]))
    assert not any(
        isinstance(module, (RosaLayer, AuxiliaryTrainingWrapper)) for module in model.modules()
    )
    # The attention of a layer that is not adapted is as good as any other module.
    saved = get_peft_model(model, config(modules_to_save=[f"1.{inside}"], layers_to_transform=[0]))
    assert any("v_proj" in name for name in trainable(saved))


@each_kind
def test_a_classifiers_head_is_trained_too(kind: str, tmp_path: Path) -> None:
    """PEFT adds its guesses at the head's name to `modules_to_save`; not all of them exist."""

    def classifier() -> PreTrainedModel:
        torch.manual_seed(0)
        settings = CONFIGS[kind]()
        settings.num_labels, settings.pad_token_id = 3, 0
        return AutoModelForSequenceClassification.from_config(settings).eval()

    model = get_peft_model(classifier(), config(task_type="SEQ_CLS")).eval()
    randomize(model)
    assert any("score" in name for name in trainable(model))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(classifier(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))


@each_kind
def test_norms_that_are_also_modules_to_save(kind: str) -> None:
    norm = "ln_1" if kind == "gptj" else "input_layernorm"
    model = wrapped(kind, modules_to_save=[norm])
    assert torch.equal(logits(model), logits(wrapped(kind)))
    assert trainable(model) == trainable(wrapped(kind))
    limited = wrapped(kind, modules_to_save=[norm], layers_to_transform=[0])
    with_norm = {layer_of(name) for name in trainable(limited) if norm in name}
    assert with_norm == {0, 1}  # the user asks for all of them
