"""DLS in a plain loop: what is chosen, what frozen means, what is saved, what is refused."""

from __future__ import annotations

import copy
import json
import random
import warnings
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.dls.selection import ATTACHED
from rosa.errors import RosaError
from tests.dls_models import (
    LAYERS,
    batch,
    decoder_layers,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
)

NORMS = ["input_layernorm", "post_attention_layernorm"]
EVERY_THIRD = DlsConfig(interval=3, warmup=2, p_exploit=0.5, seed=1)


def full() -> nn.Module:
    return tiny_llama()


def lora() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))


def lora_and_norms() -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=NORMS)
    return get_peft_model(tiny_llama(), config)


def rosa() -> nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), RosaConfig(r=4, r_low=0.5, alpha=1.0))


MODELS = pytest.mark.parametrize("make", [full, lora, lora_and_norms, rosa])


def adamw(model: nn.Module, **changes: object) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.01, "weight_decay": 0.1, **changes})


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, t: int) -> None:
    model(**batch(t)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def norm_gradients(model: nn.Module) -> list[list[torch.Tensor]]:
    """Gradients of the two norms of each layer, whoever wraps them."""
    return [
        [
            getattr(layer, name).weight.grad.clone()  # a PEFT wrapper hands on its active copy's
            for name in NORMS
        ]
        for layer in decoder_layers(model)
    ]


# ---- Algorithm 1 written plainly -------------------------------------------------------------


def algorithm_1(model: nn.Module, config: DlsConfig, steps: int) -> list[dict]:
    """The paper's loop with one AdamW per layer: a layer that is masked is not stepped at all."""
    layers = decoder_layers(model)
    trained = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
    inside = {p for layer in trained for p in layer}
    outside = [p for p in model.parameters() if p.requires_grad and p not in inside]
    for layer in layers:  # norms need gradients to be scored, trained or not
        for name in NORMS:
            getattr(layer, name).weight.requires_grad_(True)
    optimizers = [torch.optim.AdamW(p, lr=0.01, weight_decay=0.1) for p in trained]
    others = torch.optim.AdamW(outside, lr=0.01, weight_decay=0.1) if outside else None
    selected, history = list(range(LAYERS)), []
    k = max(1, round(config.k_ratio * LAYERS))
    for t in range(1, steps + 1):
        model.zero_grad()
        model(**batch(t)).loss.backward()
        if t > config.warmup and t % config.interval == 0:
            scores = [
                (sum(float((g.double() ** 2).sum()) for g in pair)) ** 0.5
                for pair in norm_gradients(model)
            ]
            generator = random.Random(f"rosa-dls/{config.seed}/{t}")
            if generator.random() < config.p_exploit:
                mode = "exploit"
                selected = sorted(sorted(range(LAYERS), key=lambda i: -scores[i])[:k])
            else:
                mode, pool = "explore", list(range(LAYERS))
                for i in range(k):
                    j = i + int(generator.random() * (LAYERS - i))
                    pool[i], pool[j] = pool[j], pool[i]
                selected = sorted(pool[:k])
            history.append({"step": t, "mode": mode, "scores": scores, "selected": selected})
        for i in selected:
            optimizers[i].step()
        if others is not None:
            others.step()
    return history


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
    for found, wanted in zip(dls.history, expected, strict=True):
        assert found["scores"] == pytest.approx(wanted["scores"], rel=1e-12)
        assert {**found, "scores": 0} == {**wanted, "scores": 0}
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


# ---- frozen means frozen -----------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": adamw,
    "foreach": lambda model: adamw(model, foreach=True),
    "fused": lambda model: adamw(model, fused=True),
    "sgd": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1
    ),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), weight_decay=0.1),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("set_to_none", [True, False])
def test_frozen_layers_and_their_state_do_not_change_by_a_bit(kind: str, set_to_none: bool) -> None:
    model = full()
    optimizer = OPTIMIZERS[kind](model)
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


# ---- work that is skipped ----------------------------------------------------------------------


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


# ---- loops -------------------------------------------------------------------------------------


def clipped_run(model: nn.Module, steps: int, config: DlsConfig, clip: float) -> tuple:
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, config)
    norms = []
    for t in range(1, steps + 1):
        model(**batch(t)).loss.backward()
        dls.select()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        optimizer.zero_grad()
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
    with pytest.warns(UserWarning, match="no choice at step 4.*not finite; the choice before"):
        optimizer.step()
    assert dls.selected == chosen
    assert len(dls.history) == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_parameters_shared_with_the_rest_of_the_model_always_train() -> None:
    model = full()
    for layer in decoder_layers(model):
        layer.post_attention_layernorm.weight = model.model.norm.weight
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
    for t in range(1, 4):
        before = model.model.norm.weight.detach().clone()
        train_step(model, optimizer, t)
        assert model.model.norm.weight.requires_grad
        assert not torch.equal(before, model.model.norm.weight)
    assert len(dls.history) == 3


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


@pytest.mark.parametrize("make", [lora, lora_and_norms, rosa])
def test_asking_the_base_model_in_between_thaws_nothing(make) -> None:
    """PEFT's `disable_adapter` leaves every adapter parameter with requires_grad=True."""
    reference = make()
    expected = algorithm_1(reference, EVERY_THIRD, 9)
    model = make()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, EVERY_THIRD)
    for t in range(1, 10):
        with model.disable_adapter(), torch.no_grad():
            model(**batch(t))
        train_step(model, optimizer, t)
    assert [r["selected"] for r in dls.history] == [r["selected"] for r in expected]
    assert same(snapshot(model), snapshot(reference))


def test_in_an_accelerate_loop() -> None:
    """`accumulate` decides when the optimizer steps; the loop selects on the last part."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    def run(select: bool) -> tuple[nn.Module, DynamicLayerSelection]:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
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


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant: bool) -> None:
    def run(checkpointing: bool) -> tuple[nn.Module, list]:
        model = lora_and_norms()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            model.enable_input_require_grads()
        dls, _ = clipped_run(model, 6, EVERY_THIRD, clip=0.5)
        return model, dls.history

    (one, one_history), (two, two_history) = run(False), run(True)
    assert one_history == two_history
    assert same(snapshot(one), snapshot(two))


# ---- state -------------------------------------------------------------------------------------


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


def test_state_of_another_model_or_format_is_refused() -> None:
    model = full()
    dls = DynamicLayerSelection(model, adamw(model), EVERY_THIRD)
    with pytest.raises(RosaError, match="4 layers and this one has 6"):
        dls.load_state_dict({**dls.state_dict(), "layers": 4})
    with pytest.raises(RosaError, match="format 99"):
        dls.load_state_dict({**dls.state_dict(), "version": 99})


def test_history_is_a_copy_in_the_state() -> None:
    model = full()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, DlsConfig(interval=1, warmup=0))
    train_step(model, optimizer, 1)
    state = dls.state_dict()
    train_step(model, optimizer, 2)
    assert len(state["history"]) == 1
    assert json.loads(json.dumps(state)) == state


# ---- attach, detach, refusals ------------------------------------------------------------------


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


def test_a_run_in_which_it_never_chose_is_a_warning() -> None:
    model = full()
    optimizer = adamw(model)
    with pytest.warns(UserWarning, match="never chooses in 10 steps.*interval is 40.*0 steps"):
        dls = DynamicLayerSelection(model, optimizer, DlsConfig(), total_steps=10)
    train_step(model, optimizer, 1)
    with pytest.warns(UserWarning, match="in the 1 steps of this run"):
        dls.detach()


def test_total_steps_is_asked_for() -> None:
    model = full()
    with pytest.raises(RosaError, match="total_steps is needed"):
        DynamicLayerSelection(model, adamw(model))
    assert not getattr(model, ATTACHED, False)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = full()
    stranger = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    with pytest.raises(RosaError, match="holds none of the trainable parameters"):
        DynamicLayerSelection(model, stranger, EVERY_THIRD)
    with pytest.raises(RosaError, match="LBFGS"):
        DynamicLayerSelection(model, torch.optim.LBFGS(model.parameters()), EVERY_THIRD)
    with pytest.raises(RosaError, match=r"torch\.optim\.Optimizer, not str"):
        DynamicLayerSelection(model, "adamw", EVERY_THIRD)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("WORLD_SIZE", "2", "one process without DDP, and this run has 2"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "under DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "true", "under FSDP"),
    ],
)
def test_engines_it_cannot_work_under_are_refused(monkeypatch, variable, value, sentence) -> None:
    model = full()
    monkeypatch.setenv(variable, value)
    with pytest.raises(RosaError, match=sentence):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)


def test_a_process_group_of_several_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 4)
    model = full()
    with pytest.raises(RosaError, match="this run has 4"):
        DynamicLayerSelection(model, adamw(model), EVERY_THIRD)


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
