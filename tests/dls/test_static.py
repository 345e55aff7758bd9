"""A static choice of layers: `dls: {layers: [...]}`, the control of whether scores matter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.cli.recipe_parser import load_recipe
from rosa.errors import RosaError
from rosa.train.recipe import dump_recipe
from tests.support.dls_models import (
    LAYERS,
    MODELS,
    adamw,
    decoder_layers,
    lora,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
    train_step,
)

STATIC = DlsConfig(layers=[4, 1])


def static_record(step: int, layers: list[int]) -> dict[str, object]:
    return {"step": step, "mode": "static", "scores": [None] * LAYERS, "selected": layers}


@MODELS
def test_only_the_given_layers_train_from_the_first_step_on(make) -> None:
    model = make()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, STATIC)
    before = [snapshot(layer) for layer in decoder_layers(model)]
    for t in range(3):
        train_step(model, optimizer, t)
    changed = [
        i
        for i, layer in enumerate(decoder_layers(model))
        if not same(snapshot(layer), before[i]) or list(optimizer_state(optimizer, layer))
    ]
    assert changed == [1, 4]
    assert dls.selected == [1, 4]
    assert dls.history == [static_record(1, [1, 4])]
    dls.detach()


def test_it_equals_training_with_the_other_layers_frozen_by_hand() -> None:
    models = [lora(), lora()]
    optimizers = [adamw(model) for model in models]
    DynamicLayerSelection(models[0], optimizers[0], STATIC)
    for i, layer in enumerate(decoder_layers(models[1])):
        if i not in (1, 4):
            layer.requires_grad_(False)
    for t in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            train_step(model, optimizer, t)
    assert same(snapshot(models[0]), snapshot(models[1]))


def test_nothing_is_asked_about_the_runs_length_and_nothing_warned(recwarn) -> None:
    model = lora()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(layers=[0], warmup=0.05), None)
    train_step(model, optimizer, 0)
    dls.detach()
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(layers=[0]), total_steps=3)
    train_step(model, optimizer, 0)
    dls.detach()
    assert not [w for w in recwarn if "DLS" in str(w.message)]


@pytest.mark.parametrize(
    "layers", [[], [1, 1], [-1], [0.5], [True], "0", 3, {0: 1}, [None]], ids=repr
)
def test_what_is_no_list_of_layers_raises(layers: object) -> None:
    with pytest.raises(RosaError, match=r"dls\.layers must be a list of distinct layer indices"):
        DlsConfig(layers=layers)  # type: ignore[arg-type]


def test_layers_that_the_model_lacks_or_cannot_train_are_named() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[0, 1, 2, 5])
    model = get_peft_model(tiny_llama(), config)
    for layers, words in (([0, 6, 99], "has 6, 99"), ([3, 5], "has 3")):
        with pytest.raises(
            RosaError, match=rf"{words}, .* trainable layers of this model are 0-2, 5"
        ):
            DynamicLayerSelection(model, adamw(model), DlsConfig(layers=layers))


def test_its_state_resumes_and_a_changed_choice_is_a_new_record() -> None:
    model = lora()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, STATIC)
    for t in range(2):
        train_step(model, optimizer, t)
    saved = json.loads(json.dumps(dls.state_dict()))
    dls.detach()

    dls = DynamicLayerSelection(model, optimizer, STATIC)
    dls.load_state_dict(saved)
    assert (dls.step, dls.selected, dls.history) == (2, [1, 4], [static_record(1, [1, 4])])
    dls.detach()

    dls = DynamicLayerSelection(model, optimizer, DlsConfig(layers=[0]))
    with pytest.warns(UserWarning, match=r"layers \[1, 4\] -> \[0\]"):
        dls.load_state_dict(saved)
    assert dls.selected == [0]
    assert dls.history == [static_record(1, [1, 4]), static_record(3, [0])]
    dls.detach()


def test_it_is_one_key_of_a_recipe_of_the_command_line_and_of_an_adapter(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    head = "model: rosa-tiny\ndata: tiny-sums\noutput_dir: x\n"
    recipe.write_text(head + "dls: {layers: [5, 0]}\n")
    read = load_recipe(str(recipe))
    assert read.dls == DlsConfig(layers=[0, 5])
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(read))
    assert load_recipe(str(again)) == read
    recipe.write_text(head)
    assert load_recipe(str(recipe), "--dls.layers", "[1, 2]").dls == DlsConfig(layers=[1, 2])

    RosaConfig(dls=STATIC).save_pretrained(tmp_path)
    assert RosaConfig.from_pretrained(tmp_path).dls == STATIC
    hash(STATIC)
