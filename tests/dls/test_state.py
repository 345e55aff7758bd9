"""DLS: saved and resumed, attached and detached, and where it raises an error."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel

from rosa import DlsConfig, DynamicLayerSelection
from rosa.dls.attached import ATTACHED
from rosa.errors import RosaError
from tests.support.dls_models import (
    EVERY_THIRD,
    adamw,
    batch,
    full,
    lora,
    same,
    snapshot,
    tiny_llama,
    train_step,
)


@pytest.mark.parametrize("stop", [2, 3, 5, 6])
def test_saved_and_resumed_equals_uninterrupted(stop: int, tmp_path) -> None:
    whole = full()
    optimizer = adamw(whole)
    uninterrupted = DynamicLayerSelection(whole, optimizer, EVERY_THIRD, total_steps=9)
    for t in range(1, 10):
        train_step(whole, optimizer, t)

    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, total_steps=9)
    for t in range(1, stop + 1):
        train_step(model, optimizer, t)
    (tmp_path / "dls.json").write_text(json.dumps(dls.state_dict()))
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "rest"
    )

    model = full()
    rest = torch.load(tmp_path / "rest", weights_only=True)
    model.load_state_dict(rest["model"])
    optimizer = adamw(model)
    optimizer.load_state_dict(rest["optimizer"])
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD, total_steps=9)
    dls.load_state_dict(json.loads((tmp_path / "dls.json").read_text()))
    for t in range(stop + 1, 10):
        train_step(model, optimizer, t)
    assert dls.history == uninterrupted.history
    assert dls.state_dict() == uninterrupted.state_dict()
    assert json.dumps(dls.history) == json.dumps(uninterrupted.history)
    assert same(snapshot(model), snapshot(whole))


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("layers", [2], r"layers None -> \[2\]"),
        ("policy", "cyclic", "policy scores -> cyclic"),
        ("score", "relative", "score gradient -> relative"),
    ],
)
def test_a_setting_added_since_a_state_was_written_had_its_default(
    key: str, value: object, change: str, recwarn: pytest.WarningsRecorder
) -> None:
    model = lora()
    optimizer = adamw(model)
    config = DlsConfig(interval=1, warmup=0)
    dls = DynamicLayerSelection(model, optimizer, config)
    train_step(model, optimizer, 1)
    old = dls.state_dict()
    del old["config"][key]
    dls.detach()
    dls = DynamicLayerSelection(model, optimizer, config)
    dls.load_state_dict(old)
    assert not [w for w in recwarn if "other settings" in str(w.message)]
    dls.detach()
    dls = DynamicLayerSelection(model, optimizer, replace(config, **{key: value}))
    with pytest.warns(UserWarning, match=change):
        dls.load_state_dict(old)
    if key == "layers":
        assert dls.selected == value
    dls.detach()


def test_the_seed_is_part_of_the_state() -> None:
    def choices(dls: DynamicLayerSelection, model: nn.Module, optimizer) -> list:
        for t in range(1, 13):
            train_step(model, optimizer, t)
        return [record["selected"] for record in dls.history]

    def fresh(seed: int) -> tuple:
        model = full()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        config = DlsConfig(interval=2, warmup=0, p_exploit=0, seed=seed)
        return DynamicLayerSelection(model, optimizer, config), model, optimizer

    first, same_seed, other = fresh(0), fresh(0), fresh(1)
    start = first[0].state_dict()
    expected = choices(*first)
    assert choices(*same_seed) == expected
    assert choices(*other) != expected
    resumed = fresh(1)
    with pytest.warns(UserWarning, match="seed 0 -> 1"):
        resumed[0].load_state_dict(start)
    assert choices(*resumed) == expected


def test_state_of_another_model_or_format_raises() -> None:
    model = full()
    dls = DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    with pytest.raises(RosaError, match="4 layers, and this one has 6"):
        dls.load_state_dict({**dls.state_dict(), "layers": 4})
    with pytest.raises(RosaError, match="format 99"):
        dls.load_state_dict({**dls.state_dict(), "version": 99})


def test_a_state_whose_layers_cannot_train_raises() -> None:
    def some(layers: list[int]) -> tuple[nn.Module, torch.optim.Optimizer]:
        config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=layers)
        model = get_peft_model(tiny_llama(), config)
        return model, adamw(model)

    lower = some([0, 1])
    dls = DynamicLayerSelection(*lower, DlsConfig(interval=1, warmup=0, k_ratio=1))
    train_step(*lower, 1)
    state = dls.state_dict()
    dls = DynamicLayerSelection(*some([1, 2, 3, 5]), DlsConfig(interval=1, warmup=0))
    with pytest.raises(
        RosaError, match=r"trains layers 0-1, but only 1-3, 5 of this model .* resume with"
    ):
        dls.load_state_dict(state)
    assert dls.selected is None


def test_a_damaged_state_is_reported() -> None:
    model = full()
    dls = DynamicLayerSelection(model, adamw(model), DlsConfig(interval=1, warmup=0))
    with pytest.raises(RosaError, match="is damaged: it has no config, history, layers"):
        dls.load_state_dict({"version": 1})


def test_a_copy_of_an_attached_model_raises() -> None:
    model = full()
    DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    copy_of_model = copy.deepcopy(model)
    with pytest.raises(RosaError, match="when the model was copied"):
        DynamicLayerSelection(copy_of_model, adamw(copy_of_model), EVERY_THIRD)


def test_history_is_a_copy_in_the_state() -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
    train_step(model, optimizer, 1)
    state = dls.state_dict()
    train_step(model, optimizer, 2)
    assert len(state["history"]) == 1
    assert json.loads(json.dumps(state)) == state


def test_attached_is_marked_on_every_wrapper_and_undone() -> None:
    model = lora()
    dls = DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    wrappers = [model, model.base_model, model.get_base_model(), model.get_base_model().model]
    assert all(getattr(wrapper, ATTACHED) is True for wrapper in wrappers)
    with pytest.raises(RosaError, match="already attached"):
        DynamicLayerSelection(model.get_base_model(), adamw(model), EVERY_THIRD)
    dls.detach()
    assert not any(getattr(wrapper, ATTACHED, False) for wrapper in wrappers)
    DynamicLayerSelection(model, adamw(model), EVERY_THIRD).detach()


def test_after_detach_training_is_plain_again() -> None:
    model, plain = full(), full()
    optimizer = adamw(model)
    DynamicLayerSelection(model, optimizer, EVERY_THIRD).detach()
    other = adamw(plain)
    for t in range(1, 5):
        train_step(model, optimizer, t)
        train_step(plain, other, t)
    assert same(snapshot(model), snapshot(plain))


def test_after_detach_its_methods_have_no_effect() -> None:
    """Also on another selection that holds the model by then."""
    model = lora()
    optimizer = adamw(model)
    old = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
    train_step(model, optimizer, 1)
    state = old.state_dict()
    old.detach()
    assert not old.attached
    new = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0))
    asked = [p.requires_grad for p in model.parameters()]
    model(**batch(2)).loss.backward()
    gradients = [p.grad is None for p in model.parameters()]
    old.select()
    old.refreeze()
    old.load_state_dict(state)
    old.detach()
    assert [p.requires_grad for p in model.parameters()] == asked
    assert [p.grad is None for p in model.parameters()] == gradients
    optimizer.step()
    optimizer.zero_grad()
    old.detach()
    train_step(model, optimizer, 3)
    assert [record["step"] for record in new.history] == [2]
    assert len(old.history) == 1


@pytest.mark.parametrize("how", ["thawed", "adapter"])
def test_what_begins_to_train_later_raises(how: str) -> None:
    model = lora()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0))
    if how == "thawed":
        model.requires_grad_()
    else:
        model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
        model.set_adapter("other")
        added = [p for name, p in model.named_parameters() if ".other." in name]
        optimizer.add_param_group({"params": added})
    train_step(model, optimizer, 1)
    with pytest.raises(RosaError, match=r"of layer 0 trains, but did not when DLS was attached"):
        train_step(model, optimizer, 2)
    optimizer.zero_grad()
    dls.detach()
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2, warmup=0))
    train_step(model, optimizer, 1)
    train_step(model, optimizer, 2)
    assert dls.selected is not None


def test_a_run_in_which_it_never_chose_is_a_warning() -> None:
    model = full()
    optimizer = adamw(model)
    with pytest.warns(UserWarning, match="never selects in the 10 steps.*interval is 40.*0 steps"):
        dls = DynamicLayerSelection(model, optimizer, DlsConfig(), total_steps=10)
    train_step(model, optimizer, 1)
    with pytest.warns(UserWarning, match="in the 1 steps of this run"):
        dls.detach()


def test_a_run_that_ends_before_its_first_choice_does_not_warn() -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=2), total_steps=10)
    train_step(model, optimizer, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dls.detach()
    assert dls.history == []


def test_total_steps_is_asked_for() -> None:
    model = full()
    with pytest.raises(RosaError, match="total_steps is needed"):
        DynamicLayerSelection(model, adamw(model))
    assert not getattr(model, ATTACHED, False)


def test_an_optimizer_of_other_parameters_raises() -> None:
    model = full()
    unrelated = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    with pytest.raises(RosaError, match="holds none of the trainable parameters"):
        DynamicLayerSelection(model, unrelated, EVERY_THIRD)
    with pytest.raises(RosaError, match="LBFGS"):
        DynamicLayerSelection(model, torch.optim.LBFGS(model.parameters()), EVERY_THIRD)
    with pytest.raises(RosaError, match=r"torch\.optim\.Optimizer, not str"):
        DynamicLayerSelection(model, "adamw", EVERY_THIRD)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("WORLD_SIZE", "2", "2 processes were started and are not connected yet: attach DLS after"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"with DeepSpeed.*use FSDP2 .*or DDP"),
        ("ACCELERATE_USE_FSDP", "true", "not sharded yet: attach it to what"),
    ],
)
def test_engines_it_cannot_work_under_raise(monkeypatch, variable, value, sentence) -> None:
    model = full()
    monkeypatch.setenv(variable, value)
    with pytest.raises(RosaError, match=sentence):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)


class Fsdp1(FullyShardedDataParallel):
    """In class only: PyTorch builds it on an accelerator alone."""

    __getattr__ = nn.Module.__getattr__
    named_parameters = nn.Module.named_parameters

    def __init__(self, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self.wrapped = model


def test_fsdp1_raises() -> None:
    model = Fsdp1(full())
    with pytest.raises(RosaError, match=r"with FSDP1.*use FSDP2"):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)


def test_a_checkpoint_of_torch_distributed_is_no_step() -> None:
    """Saving SGD's state, which is empty, it makes a step of zeros at a learning rate of zero."""
    model = full()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 4):
        train_step(model, optimizer, t)
        before = dls.state_dict()
        get_state_dict(model, optimizer)
        assert dls.state_dict() == before
    optimizer.param_groups[0]["lr"] = 0.0  # as at the first step of a warm-up: a step it is
    train_step(model, optimizer, 4)
    assert dls.step == 4
