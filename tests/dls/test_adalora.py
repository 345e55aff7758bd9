"""AdaLoRA under DLS: a frozen layer's ranks keep their importance, the budget is the model's."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from rosa import DlsConfig, DynamicLayerSelection
from rosa.errors import RosaError
from rosa.methods.registry import method_config
from tests.support.dls_models import (
    EVERY_THIRD,
    LAYERS,
    adamw,
    batch,
    decoder_layers,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
)
from tests.support.dls_reference import algorithm_1

STEPS, TARGET = 12, 2
SCHEDULE = {"init_r": 4, "target_r": TARGET, "tinit": 2, "tfinal": 3, "target_modules": ["q_proj"]}
AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def configured() -> Any:
    return method_config("adalora", SCHEDULE, total_steps=STEPS)


def adapted() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(torch.float32), configured())


def allocating_adamw(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that moves AdaLoRA's ranks after its steps, in whatever loop it is."""
    optimizer, steps = adamw(model), itertools.count(1)
    optimizer.register_step_post_hook(lambda *_: model.base_model.update_and_allocate(next(steps)))
    return optimizer


def layer_of(name: str) -> int:
    return int(re.search(r"layers\.(\d+)\.", name)[1])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    model(**batch(t)).loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(t)
    optimizer.zero_grad()


def kept_ranks(model: nn.Module) -> list[int]:
    values = [p for name, p in model.named_parameters() if "lora_E" in name]
    return [int((value != 0).sum()) for value in values]


@pytest.mark.dls_cell(method="AdaLoRA", loop="plain PyTorch")
def test_the_run_is_algorithm_1_with_the_importance_of_frozen_layers_standing_still() -> None:
    """The reference updates every importance and puts those of the masked layers back."""
    reference = adapted()
    allocator = reference.base_model.rankallocator
    selected: list[int] = []
    peft_s = allocator.update_ipt

    def update(model: nn.Module) -> None:
        before = {key: dict(getattr(allocator, key)) for key in AVERAGES}
        peft_s(model)
        for key in AVERAGES:
            frozen = {n: v for n, v in before[key].items() if layer_of(n) not in selected}
            getattr(allocator, key).update(frozen)

    def allocate(t: int, chosen: list[int]) -> None:
        selected[:] = chosen
        reference.base_model.update_and_allocate(t)

    allocator.update_ipt = update
    expected = algorithm_1(reference, EVERY_THIRD, STEPS, after_step=allocate)

    model = adapted()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
    assert [r["selected"] for r in dls.history] == [r["selected"] for r in expected]
    assert len({tuple(r["selected"]) for r in expected}) > 1
    assert same(snapshot(model), snapshot(reference))
    assert sum(kept_ranks(model)) == TARGET * LAYERS
    assert len(set(kept_ranks(model))) > 1  # moved between layers, not cut evenly


def test_a_frozen_layer_changes_by_nothing_but_the_ranks_that_are_taken() -> None:
    model = adapted()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    allocator, layers = model.base_model.rankallocator, decoder_layers(model)
    taken = frozen_steps = 0
    for t in range(1, STEPS + 1):
        before = [dict(layer.state_dict()) for layer in layers]
        before = [{key: value.clone() for key, value in layer.items()} for layer in before]
        state = [dict(optimizer_state(optimizer, layer)) for layer in layers]
        averages = [dict(getattr(allocator, key)) for key in AVERAGES]
        train_step(model, optimizer, t)
        for i in range(LAYERS):
            if dls.selected is None or i in dls.selected:
                continue
            frozen_steps += 1
            for key, value in layers[i].state_dict().items():
                if "lora_E" in key:
                    lost = value != before[i][key]
                    taken += int(lost.sum())
                    assert not value[lost].any()
                else:
                    assert torch.equal(value, before[i][key]), key
            now = dict(optimizer_state(optimizer, layers[i]))
            assert all(torch.equal(now[key], state[i][key]) for key in state[i])
            for key, old in zip(AVERAGES, averages, strict=True):
                new = getattr(allocator, key)  # empty once the ranks are final
                assert all(new[n] is v for n, v in old.items() if n in new and layer_of(n) == i)
    assert frozen_steps == 3 * 10
    assert taken > 0


def test_a_layer_that_was_never_trained_has_no_importance() -> None:
    model = adapted()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=100, warmup=0, p_exploit=0))
    dls.load_state_dict({**dls.state_dict(), "selected": [0, 5]})
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
    ranks = kept_ranks(model)
    assert ranks[0] > 0
    assert ranks[5] > 0
    assert ranks[1:5] == [0, 0, 0, 0]


def test_afterwards_adalora_is_as_it_was() -> None:
    model = adapted()
    allocator = model.base_model.rankallocator
    attributes = set(vars(allocator))
    dls = DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    assert "update_ipt" in vars(allocator)
    dls.detach()
    assert set(vars(allocator)) == attributes


def test_wrong_uses_raise() -> None:
    model = adapted()
    with pytest.raises(RosaError, match=r"inside AdaLoRA.*what get_peft_model returned"):
        DynamicLayerSelection(model.get_base_model(), adamw(model), EVERY_THIRD)
    optimizer: Any = adamw(model)
    DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    model(**batch(1)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RosaError, match=r"between optimizer\.step\(\) and optimizer\.zero_grad"):
        model.base_model.update_and_allocate(1)
