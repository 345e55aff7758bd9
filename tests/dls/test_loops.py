"""DLS in the loops people write: clipping, accumulation, scalers, closures, checkpointing."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.utils.checkpoint import CheckpointError

from rosa import DlsConfig, DynamicLayerSelection
from tests.support.dls_models import (
    EVERY_THIRD,
    adamw,
    batch,
    clipped_step,
    decoder_layers,
    full,
    lora,
    lora_and_norms,
    norm_gradients,
    rosa,
    same,
    snapshot,
    tiny_llama,
    train_step,
)
from tests.support.dls_reference import algorithm_1


def clipped_run(model: nn.Module, steps: int, config: DlsConfig, clip: float) -> tuple:
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, config)
    norms = [
        clipped_step(model, optimizer, dls, batch(t), clip).item() for t in range(1, steps + 1)
    ]
    return dls, norms


def test_clipping_after_select_sees_the_chosen_layers_only() -> None:
    model = full()
    reference = copy.deepcopy(model)
    config = DlsConfig(interval=1, warmup=0, p_exploit=1)
    dls, norms = clipped_run(model, 1, config, clip=0.1)

    reference(**batch(1)).loss.backward()
    gradients = norm_gradients(reference)
    scores = [(a.norm() ** 2 + f.norm() ** 2).sqrt().item() for a, f in gradients]
    assert dls.history[0]["scores"] == pytest.approx(scores, rel=1e-12)  # not clipped
    for i, layer in enumerate(decoder_layers(reference)):
        if i not in dls.history[0]["selected"]:
            layer.requires_grad_(False)
            layer.zero_grad()
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.1).item()
    assert norms == [pytest.approx(expected, rel=1e-12)]
    adamw(reference).step()
    assert same(snapshot(model), snapshot(reference))


def test_select_twice_is_select_once() -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0, p_exploit=1))
    model(**batch(1)).loss.backward()
    dls.select()
    dls.select()
    optimizer.step()
    assert min(dls.history[0]["scores"]) > 0  # not scored again without the dropped gradients


def test_gradient_accumulation_equals_the_big_batch() -> None:
    def run(parts: int) -> tuple[nn.Module, DynamicLayerSelection]:
        model = full()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
        for t in range(1, 7):
            tokens = batch(t)["input_ids"].chunk(parts)
            for part in tokens:
                (model(input_ids=part, labels=part).loss / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, dls

    whole, one = run(1)
    summed, two = run(2)
    assert [r["selected"] for r in one.history] == [r["selected"] for r in two.history]
    for a, b in zip(one.history, two.history, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], rel=1e-4)
    for a, b in zip(whole.parameters(), summed.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)  # norms compute in float32 inside


def test_a_closure_is_scored_after_it_ran() -> None:
    def run(with_closure: bool) -> tuple[nn.Module, list]:
        model = full()
        optimizer = adamw(model)
        dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
        for t in range(1, 7):
            optimizer.zero_grad()

            def closure(t: int = t) -> torch.Tensor:
                loss = model(**batch(t)).loss
                loss.backward()
                return loss

            if with_closure:
                optimizer.step(closure)
            else:
                closure()
                optimizer.step()
        return model, dls.history

    (one, one_history), (two, two_history) = run(True), run(False)
    assert one_history == two_history
    assert len(one_history) == 2
    assert same(snapshot(one), snapshot(two))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused: bool, unscale: bool) -> None:
    """Step 3 scores; its first two attempts overflow. The choices are those of a clean run."""

    def run(overflows: int) -> tuple[nn.Module, DynamicLayerSelection]:
        model = tiny_llama(torch.float32)
        optimizer = adamw(model, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10**6)
        dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
        for t in range(1, 6):
            for attempt in range(1 + (overflows if t == 3 else 0)):
                scaler.scale(model(**batch(t)).loss).backward()
                if t == 3 and attempt < overflows:
                    model.lm_head.weight.grad.fill_(torch.inf)
                if unscale:
                    scaler.unscale_(optimizer)
                    dls.select()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        return model, dls

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean_model, clean = run(0)
        model, dls = run(2)
    assert dls.step == clean.step == 5
    assert dls.selected == clean.selected
    # Another power of two as scale changes no bit of the unscaled gradients.
    assert dls.history == clean.history
    assert max(dls.history[0]["scores"]) < 100  # unscaled
    assert same(snapshot(model), snapshot(clean_model))


def test_norms_outside_the_optimizer_are_scored_without_the_loss_scale() -> None:
    """A scaler unscales what the optimizer holds; the guide's order scores before that."""

    def scores(scale: float) -> list[float]:
        model = lora()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(model(**batch(1)).loss).backward()
        dls.select(scaler.get_scale())
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        return dls.history[0]["scores"]

    assert scores(1024.0) == scores(1.0)


@pytest.mark.parametrize(("set_to_none", "wrapped"), [(True, True), (False, False)])
def test_a_step_that_is_given_up_leaves_no_gradient_behind(
    set_to_none: bool, wrapped: bool
) -> None:
    """Of norms that are only scored too, which an optimizer of what trains does not hold."""

    def run(skipped: int | None) -> DynamicLayerSelection:
        model = lora()
        trained = [p for p in model.parameters() if p.requires_grad]
        plain = torch.optim.AdamW(trained, lr=0.01)
        optimizer = AcceleratedOptimizer(plain) if wrapped else plain
        dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
        for t in range(1, 8):
            if t == skipped:
                (model(**batch(99)).loss * torch.nan).backward()
                optimizer.zero_grad(set_to_none=set_to_none)
            model(**batch(t)).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        dls.detach()
        assert "zero_grad" not in vars(plain)
        return dls

    Accelerator(cpu=True)
    assert run(3).history == run(None).history


@pytest.mark.parametrize("make", [lora, rosa])
def test_asking_the_base_model_in_between_unfreezes_nothing(make) -> None:
    """PEFT's `disable_adapter` leaves every adapter parameter with requires_grad=True."""
    reference = make()
    expected = algorithm_1(reference, EVERY_THIRD, 7)
    model = make()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 8):
        with model.disable_adapter(), torch.no_grad():
            model(**batch(t))
        train_step(model, optimizer, t)
    assert [r["selected"] for r in dls.history] == [r["selected"] for r in expected]
    assert same(snapshot(model), snapshot(reference))


@pytest.mark.parametrize("again", [True, False])
def test_asking_it_between_forward_and_backward_needs_refreeze(again: bool) -> None:
    """With activations recomputed in the backward pass, as in DPO with one's own loop."""
    reference = lora()
    algorithm_1(reference, EVERY_THIRD, 5)
    model = lora()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)

    def step(t: int) -> None:
        loss = model(**batch(t)).loss
        with model.disable_adapter(), torch.no_grad():
            model(**batch(t))
        if again:
            dls.refreeze()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for t in range(1, 4):
        step(t)
    if not again:
        with pytest.raises(CheckpointError):
            step(4)
        return
    for t in range(4, 6):
        step(t)
    assert same(snapshot(model), snapshot(reference))


@pytest.mark.usefixtures("fresh_accelerate")
def test_in_an_accelerate_loop() -> None:
    """`accumulate` decides when the optimizer steps; the loop selects on the last part."""

    def run(select: bool) -> tuple[nn.Module, DynamicLayerSelection]:
        accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)
        model = full()
        model, optimizer = accelerator.prepare(model, adamw(model))
        dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
        for micro in range(2 * 6):
            with accelerator.accumulate(model):
                accelerator.backward(model(**batch(micro)).loss)
                if select and accelerator.sync_gradients:
                    dls.select()
                optimizer.step()
                optimizer.zero_grad()
        return model, dls

    model, dls = run(select=True)
    other, without = run(select=False)
    assert dls.step == 6
    assert [record["step"] for record in dls.history] == [3, 6]
    assert dls.history == without.history
    assert same(snapshot(model), snapshot(other))


def test_gradient_checkpointing_changes_nothing() -> None:
    def run(use_reentrant: bool | None) -> tuple[nn.Module, list]:
        model = lora_and_norms()
        if use_reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        dls, _ = clipped_run(model, 4, EVERY_THIRD, clip=0.5)
        return model, dls.history

    plain, history = run(None)
    for use_reentrant in (True, False):
        model, same_history = run(use_reentrant)
        assert same_history == history
        assert same(snapshot(model), snapshot(plain))
