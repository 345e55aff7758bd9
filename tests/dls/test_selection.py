"""DLS against Algorithm 1: what is chosen, what frozen means, which work is skipped."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rosa import DlsConfig, DynamicLayerSelection
from tests.support.dls_models import (
    EVERY_THIRD,
    LAYERS,
    MODELS,
    NORMS,
    adamw,
    assert_same_history,
    batch,
    decoder_layers,
    full,
    lora,
    norm_gradients,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
    train_step,
)
from tests.support.dls_reference import algorithm_1


@MODELS
def test_trajectory_is_that_of_algorithm_1(make) -> None:
    steps = 15
    reference = make()
    expected = algorithm_1(reference, EVERY_THIRD, steps)

    model = make()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, steps + 1):
        train_step(model, optimizer, t)

    assert {record["mode"] for record in expected} == {"exploit", "explore"}
    assert len({tuple(record["selected"]) for record in expected}) > 2
    assert_same_history(dls.history, expected, rel=1e-12)
    assert same(snapshot(model), snapshot(reference))


@MODELS
def test_scores_are_equation_5(make) -> None:
    model = make()
    plain = copy.deepcopy(model)
    for layer in decoder_layers(plain):
        for name in NORMS:
            getattr(layer, name).weight.requires_grad_(True)
    plain(**batch(0)).loss.backward()
    by_hand = [
        (torch.linalg.vector_norm(a) ** 2 + torch.linalg.vector_norm(f) ** 2).sqrt().item()
        for a, f in norm_gradients(plain)
    ]

    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0, p_exploit=1))
    train_step(model, optimizer, 0)
    record = dls.history[0]
    assert record["scores"] == pytest.approx(by_hand, rel=1e-12)
    assert record["selected"] == sorted(sorted(range(LAYERS), key=lambda i: -by_hand[i])[:3])
    assert dls.selected == record["selected"]
    assert all(type(score) is float for score in record["scores"])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_frozen_layers_and_their_state_do_not_change_by_a_bit(set_to_none: bool) -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    layers = decoder_layers(model)
    frozen_steps = 0
    for t in range(1, 9):
        before = [snapshot(layer) for layer in layers]
        state = [dict(optimizer_state(optimizer, layer)) for layer in layers]
        embedding = model.get_input_embeddings().weight.detach().clone()
        model(**batch(t)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        for i, layer in enumerate(layers):
            now = dict(optimizer_state(optimizer, layer))
            trains = dls.selected is None or i in dls.selected
            assert same(before[i], snapshot(layer)) != trains
            if not trains:
                frozen_steps += 1
                assert list(now) == list(state[i])
                assert all(torch.equal(now[key], state[i][key]) for key in now)
        assert not torch.equal(embedding, model.get_input_embeddings().weight)
    assert frozen_steps == 3 * 6  # half of six layers, in steps 3 to 8


def test_norms_that_are_only_scored_are_never_updated() -> None:
    model = lora()
    optimizer = adamw(model)  # holds the frozen parameters too
    norms = [getattr(layer, name) for layer in decoder_layers(model) for name in NORMS]
    before = [norm.weight.detach().clone() for norm in norms]
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 13):
        model(**batch(t)).loss.backward()
        optimizer.step()
        assert all(norm.weight.grad is None for norm in norms)
    assert len(dls.history) == 4
    assert min(dls.history[0]["scores"]) > 0
    assert same(before, [norm.weight for norm in norms])
    assert not any(norm.weight in optimizer.state for norm in norms)


def test_norms_of_another_dtype_than_the_adapter_are_scored() -> None:
    """PEFT keeps the adapter of a half-precision model in float32."""
    model = get_peft_model(tiny_llama(torch.bfloat16), LoraConfig(target_modules=["q_proj"]))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 4):
        train_step(model, optimizer, t)
    assert min(dls.history[0]["scores"]) > 0


def test_the_user_s_frozen_parameters_stay_frozen_and_come_back_as_they_were() -> None:
    model = full()
    for layer in decoder_layers(model):
        layer.mlp.requires_grad_(False)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 8):
        train_step(model, optimizer, t)
        for name, parameter in model.named_parameters():
            assert wanted[name] or not parameter.requires_grad
    assert any(p.requires_grad != wanted[name] for name, p in model.named_parameters())
    dls.detach()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted


@MODELS
def test_weight_gradients_of_frozen_layers_are_not_computed_between_scoring_steps(make) -> None:
    model = make()
    optimizer = adamw(model)
    layers = decoder_layers(model)
    trainable = [sum(p.requires_grad for p in layer.parameters()) for layer in layers]
    only_scored = 2 if make is lora else 0
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=4, warmup=0))
    for t in range(1, 10):
        if dls.scoring:
            expected = [n + only_scored for n in trainable]
        else:
            trains = range(LAYERS) if dls.selected is None else dls.selected
            expected = [n if i in trains else 0 for i, n in enumerate(trainable)]
        assert gradients_computed(model, optimizer, t) == expected
    assert [record["step"] for record in dls.history] == [4, 8]


def gradients_computed(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> list[int]:
    """How many weight gradients the engine computes per layer in one training step."""
    counts = Counter()
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda _, i=i: counts.update([i]))
        for i, layer in enumerate(decoder_layers(model))
        for parameter in layer.parameters()
        if parameter.requires_grad
    ]
    train_step(model, optimizer, t)
    for handle in handles:
        handle.remove()
    return [counts[i] for i in range(LAYERS)]


def test_gradients_that_are_not_finite_leave_the_choice_and_warn() -> None:
    model = full()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0))
    train_step(model, optimizer, 1)
    train_step(model, optimizer, 2)
    chosen = dls.selected
    assert chosen is not None
    train_step(model, optimizer, 3)
    model(**batch(4)).loss.backward()
    frozen = next(i for i in range(LAYERS) if i not in chosen)
    decoder_layers(model)[frozen].input_layernorm.weight.grad.fill_(torch.nan)
    with pytest.warns(UserWarning, match="no choice at step 4.*not finite; the previous choice"):
        optimizer.step()
    assert dls.selected == chosen
    assert len(dls.history) == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_parameter_shared_with_the_rest_of_the_model_always_trains() -> None:
    model = full()
    shared = model.model.norm.weight
    decoder_layers(model)[5].post_attention_layernorm.weight = shared
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0, p_exploit=0))
    for t in range(1, 7):
        before = shared.detach().clone()
        train_step(model, optimizer, t)
        assert not torch.equal(before, shared)
    assert any(5 not in record["selected"] for record in dls.history)


def test_a_parameter_that_layers_share_trains_when_one_of_them_is_chosen() -> None:
    model = full()
    first, second, *_ = layers = decoder_layers(model)
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    optimizer = adamw(model)
    config = DlsConfig(interval=1, warmup=0, p_exploit=0, k_ratio=0.3)
    dls = DynamicLayerSelection(model, optimizer, config)
    seen = set()
    for t in range(1, 9):
        before, alone = first.mlp.up_proj.weight.detach().clone(), snapshot(layers[0].self_attn)
        train_step(model, optimizer, t)
        assert dls.selected is not None
        chosen = {0, 1} & set(dls.selected)
        seen.add(frozenset(chosen))
        assert torch.equal(before, first.mlp.up_proj.weight) == (not chosen)
        assert same(alone, snapshot(layers[0].self_attn)) == (0 not in chosen)
    assert {frozenset(), frozenset({0}), frozenset({1})} <= seen


def test_only_layers_with_trainable_parameters_are_chosen() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1, 3, 4, 5])
    model = get_peft_model(tiny_llama(), config)
    optimizer = adamw(model)
    settings = DlsConfig(interval=1, warmup=0, p_exploit=0.5)
    dls = DynamicLayerSelection(model, optimizer, settings)
    for t in range(1, 9):
        train_step(model, optimizer, t)
        assert dls.selected is not None
        assert len(dls.selected) == 2
        assert set(dls.selected) <= {1, 3, 4, 5}
        assert len(dls.history[-1]["scores"]) == LAYERS


def test_one_layer_and_all_layers() -> None:
    for layers, k_ratio, expected in [(1, 0.5, [0]), (LAYERS, 1.0, list(range(LAYERS)))]:
        model = tiny_llama(layers=layers)
        plain = copy.deepcopy(model)
        optimizer, other = adamw(model), adamw(plain)
        settings = DlsConfig(k_ratio=k_ratio, interval=2, warmup=0)
        dls = DynamicLayerSelection(model, optimizer, settings)
        for t in range(1, 6):
            train_step(model, optimizer, t)
            train_step(plain, other, t)
        assert dls.selected == expected
        assert same(snapshot(model), snapshot(plain))
