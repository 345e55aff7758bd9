"""DLS with the optimizers people use, and with what goes around an optimizer's step hooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

from rosa import DlsConfig, DynamicLayerSelection
from rosa.dls.foreign_steps import MAX_FOREIGN_STEPS
from rosa.errors import RosaError
from tests.support.dls_models import (
    EVERY_THIRD,
    LAYERS,
    adamw,
    batch,
    decoder_layers,
    full,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
    train_step,
)

STEPS = 8  # chooses at 3 and 6


def bitsandbytes(name: str, **keys: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        from bitsandbytes import optim

        return getattr(optim, name)(model.parameters(), lr=0.01, weight_decay=0.1, **keys)

    return make


def groups(model: nn.Module) -> torch.optim.Optimizer:
    """No decay for norms, a rate of its own for each half of the layers, the rest added later."""
    norms = [p for p in model.parameters() if p.ndim == 1]
    lower, upper = decoder_layers(model)[:3], decoder_layers(model)[3:]
    optimizer = torch.optim.AdamW(
        [
            {"params": norms, "weight_decay": 0.0},
            {"params": [p for x in lower for p in x.parameters() if p.ndim > 1], "lr": 0.001},
            {"params": [p for x in upper for p in x.parameters() if p.ndim > 1]},
        ],
        lr=0.01,
        weight_decay=0.1,
    )
    outside = [model.lm_head.weight, model.model.embed_tokens.weight]
    optimizer.add_param_group({"params": outside, "lr": 0.02})
    return optimizer


def of(kind: str, **keys: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: getattr(torch.optim, kind)(model.parameters(), lr=0.01, **keys)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": of("AdamW"),
    "AdamW foreach": of("AdamW", foreach=True),
    "AdamW fused": of("AdamW", fused=True),
    "AdamW amsgrad": of("AdamW", amsgrad=True),
    "AdamW in groups": groups,
    "SGD with momentum": of("SGD", momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adafactor": of("Adafactor", weight_decay=0.1),
    "Adafactor of Transformers": lambda model: TransformersAdafactor(
        model.parameters(), lr=0.01, relative_step=False, weight_decay=0.1
    ),
    "NAdam": of("NAdam"),
    "RMSprop": of("RMSprop", momentum=0.9),
    "bitsandbytes AdamW8bit": bitsandbytes("AdamW8bit", min_8bit_size=256),
    "bitsandbytes AdamW32bit": bitsandbytes("AdamW32bit"),
    "bitsandbytes PagedAdamW8bit": bitsandbytes("PagedAdamW8bit", min_8bit_size=256),
    "bitsandbytes Lion8bit": bitsandbytes("Lion8bit", min_8bit_size=256),
}


def with_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1.0)  # wraps `step` on the instance
    return optimizer


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_layers_and_their_state_are_bit_identical(kind: str) -> None:
    model = tiny_llama(torch.float32)
    optimizer = with_scheduler(OPTIMIZERS[kind](model))
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    layers = decoder_layers(model)
    frozen_steps = 0
    for t in range(1, STEPS + 1):
        before = [snapshot(layer) for layer in layers]
        state = [dict(optimizer_state(optimizer, layer)) for layer in layers]
        head = model.lm_head.weight.detach().clone()
        train_step(model, optimizer, t)
        assert not torch.equal(head, model.lm_head.weight)
        for i, layer in enumerate(layers):
            now = dict(optimizer_state(optimizer, layer))
            trains = dls.selected is None or i in dls.selected
            assert same(before[i], snapshot(layer)) != trains
            if not trains:
                frozen_steps += 1
                assert now.keys() == state[i].keys()
                assert now  # the layer was trained before its first freeze
                assert all(torch.equal(now[key], state[i][key]) for key in now)
    assert frozen_steps == 3 * 6


def test_bitsandbytes_keeps_its_state_in_eight_bits_here() -> None:
    """That the case above is about 8 bits at all."""
    model = tiny_llama(torch.float32)
    optimizer = OPTIMIZERS["bitsandbytes AdamW8bit"](model)
    train_step(model, optimizer, 1)
    weight = decoder_layers(model)[0].mlp.up_proj.weight
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def run(make: Callable[[nn.Module], Any], step: Callable[..., None] = train_step) -> tuple:
    model = full()
    optimizer = make(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        step(model, optimizer, t)
    return dls, snapshot(model)


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    for t in range(1, steps + 1):
        train_step(model, optimizer, t)


def test_an_optimizer_of_all_parameters_or_of_the_trainable_ones_is_the_same() -> None:
    def some(model: nn.Module) -> torch.optim.Optimizer:
        model.model.embed_tokens.requires_grad_(False)
        return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01)

    def all_of_them(model: nn.Module) -> torch.optim.Optimizer:
        model.model.embed_tokens.requires_grad_(False)
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    (one, weights), (two, others) = run(some), run(all_of_them)
    assert one.history == two.history
    assert same(weights, others)


def test_a_closure_is_scored_with_what_was_accumulated_before_it() -> None:
    """Lightning's way: the last of several backward passes is in the closure."""

    def step(model: nn.Module, optimizer: Any, t: int, closed: bool) -> None:
        def backward(part: int) -> None:
            (model(**batch(10 * t + part)).loss / 2).backward()

        backward(0)
        if closed:
            optimizer.step(lambda: backward(1))
        else:
            backward(1)
            optimizer.step()
        optimizer.zero_grad()

    closed, weights = run(adamw, lambda *args: step(*args, True))
    opened, others = run(adamw, lambda *args: step(*args, False))
    assert closed.history == opened.history
    assert same(weights, others)


def test_a_step_that_calls_its_parent_s_step_is_one_step() -> None:
    """PyTorch puts its hooks around both, so they fire twice."""

    class Careful(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    plain, weights = run(adamw)  # a plain one too, whose class has the hooks from now on
    nested, others = run(lambda model: Careful(model.parameters(), lr=0.01, weight_decay=0.1))
    assert nested.step == plain.step == STEPS
    assert nested.history == plain.history
    assert same(weights, others)


def test_a_step_that_failed_is_forgotten() -> None:
    class Fails(torch.optim.AdamW):
        broken = False

        def step(self, closure: Any = None) -> Any:
            if self.broken:
                raise RuntimeError("no memory")
            return super().step(closure)

    model = full()
    optimizer = Fails(model.parameters(), lr=0.01, weight_decay=0.1)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        optimizer.broken = True
        with pytest.raises(RuntimeError, match="no memory"):
            train_step(model, optimizer, t)
        optimizer.broken = False
        optimizer.zero_grad()
        train_step(model, optimizer, t)
    plain, weights = run(adamw)
    assert dls.history == plain.history
    assert same(snapshot(model), weights)


@pytest.mark.parametrize("first", ["Muon", "AdamW"])
def test_two_optimizers_with_select_before_the_first(first: str) -> None:
    """Muon for matrices, AdamW for the rest; DLS holds the one that has the norms."""
    model = tiny_llama(torch.float32)
    matrices = [p for x in decoder_layers(model) for p in x.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p not in set(matrices)]
    muon, other = torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.01)
    dls = DynamicLayerSelection(model, other, EVERY_THIRD)
    for t in range(1, STEPS + 1):
        before = [snapshot(layer) for layer in decoder_layers(model)]
        model(**batch(t)).loss.backward()
        dls.select()
        for optimizer in (muon, other) if first == "Muon" else (other, muon):
            optimizer.step()
        muon.zero_grad()
        other.zero_grad()
        trained = range(LAYERS) if dls.selected is None else dls.selected
        for i, layer in enumerate(decoder_layers(model)):
            assert same(before[i], snapshot(layer)) == (i not in trained)
    assert dls.step == STEPS
    assert len(dls.history) == 2


def test_another_optimizer_than_the_one_given_is_reported() -> None:
    """An optimizer that was created after attaching, and steps in place of the first."""
    model = full()
    DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    newer = adamw(model)
    with pytest.raises(RosaError, match=r"without a step of the optimizer.*AdamW.*pass DLS the"):
        train(model, newer, MAX_FOREIGN_STEPS + 1)


def test_a_step_around_the_hooks_is_reported() -> None:
    model = full()
    optimizer = adamw(model)
    optimizer.step = type(optimizer).step.__wrapped__.__get__(optimizer)  # as a compiled one is
    DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    with pytest.raises(RosaError, match="one whose step runs PyTorch's hooks"):
        train(model, optimizer, MAX_FOREIGN_STEPS + 1)


def test_a_short_run_with_another_optimizer_warns_at_the_end() -> None:
    model = full()
    dls = DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    train_step(model, adamw(model), 1)
    with pytest.warns(UserWarning, match="saw no step of the optimizer"):
        dls.detach()


def test_accumulation_and_steps_that_are_skipped_are_no_updates_unseen() -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
    for t in range(3 * MAX_FOREIGN_STEPS):
        model(**batch(t)).loss.backward()
    optimizer.step()
    assert dls.step == 1
    assert [record["step"] for record in dls.history] == [1]
    dls.detach()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        unused = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
        unused.detach()
    assert not said
