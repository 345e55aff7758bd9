"""`dls.policy`: which layers are chosen in place of the paper's, and what choosing them costs."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rosa import DlsConfig, DynamicLayerSelection, RosaConfig
from rosa.cli.recipe_parser import load_recipe
from rosa.dls import selection
from rosa.dls.choice import choose
from rosa.errors import RosaError
from rosa.train.plots import read_history, summarize
from rosa.train.recipe import dump_recipe
from tests.support.dls_models import (
    LAYERS,
    MODELS,
    NORMS,
    adamw,
    batch,
    decoder_layers,
    full,
    lora,
    optimizer_state,
    same,
    snapshot,
    tiny_llama,
    train_step,
)

OTHERS = ("random", "cyclic", "weighted", "upper", "lower")
UNSCORED = ("random", "cyclic", "upper", "lower")
POLICY = pytest.mark.parametrize("policy", OTHERS)


def settings(policy: str, **changes: object) -> DlsConfig:
    return DlsConfig(**{"interval": 2, "warmup": 3, "policy": policy, "seed": 1, **changes})


def selections(policy: str, k: int, layers: int, choices: int, seed: int = 0) -> list[list[int]]:
    scores = [1.0 + i for i in range(layers)]
    values = (
        choose(scores, range(layers), k, 0.8, seed, t, policy, turn=t) for t in range(choices)
    )
    return [choice.selected for choice in values]


# ---- the choice


@pytest.mark.parametrize("scores", [(5.0, 1.0, 0.2, 3.0, 0.0), (1e308,) * 5, (1e-320, 0, 0, 0, 0)])
def test_weighted_draws_in_proportion_to_the_scores(scores: tuple[float, ...]) -> None:
    """Chi-square over the subsets of two of five; 99.99 % quantiles by degrees of freedom."""
    weights = [s / max(scores) for s in scores]
    expected: Counter[tuple[int, ...]] = Counter()
    for first, second in permutations(range(5), 2):
        rest = sum(weights) - weights[first]
        share = weights[second] / rest if rest else 0.25  # zeros alone are left: uniform
        expected[tuple(sorted((first, second)))] += weights[first] / sum(weights) * share
    trials = 8000
    found = Counter(
        tuple(choose(scores, range(5), 2, 0.8, 3, step, "weighted").selected)
        for step in range(trials)
    )
    possible = {subset for subset in combinations(range(5), 2) if expected[subset]}
    assert set(found) == possible
    assert sum(expected.values()) == pytest.approx(1)
    chi_square = sum(
        (found[s] - trials * expected[s]) ** 2 / (trials * expected[s]) for s in possible
    )
    quantile = {3: 21.1, 5: 25.7, 9: 33.7}[len(possible) - 1]
    assert chi_square < quantile


def test_all_layers_with_a_score_come_before_those_without() -> None:
    for step in range(100):
        assert choose([0, 2.0, 0, 1e-9], range(4), 3, 0.8, 0, step, "weighted").selected[-1] == 3
        chosen = choose([0.0] * 4, range(4), 2, 0.8, 0, step, "weighted").selected
        assert len(set(chosen)) == 2


@pytest.mark.parametrize("k", range(1, 8))
def test_cyclic_chooses_every_layer_once_before_any_again(k: int) -> None:
    layers = 7
    drawn = Counter[int]()
    for turn, chosen in enumerate(selections("cyclic", k, layers, 4 * layers), start=1):
        assert len(chosen) == k
        drawn.update(chosen)
        rounds = turn * k // layers
        assert {drawn[i] for i in range(layers)} <= {rounds, rounds + 1}
    assert set(drawn.values()) == {4 * k}
    assert selections("cyclic", 3, layers, 3) == [[0, 1, 2], [3, 4, 5], [0, 1, 6]]


def test_random_is_exploring_at_every_choice() -> None:
    scores = [0.0] * 8
    for step in range(100):
        explored = choose(scores, range(8), 3, 0.0, 5, step)
        assert explored.mode == "explore"
        assert choose([None] * 8, range(8), 3, 0.8, 5, step, "random") == (
            "random",
            explored.selected,
        )


def test_upper_and_lower_are_of_the_layers_that_can_train() -> None:
    assert choose([], [1, 3, 4, 7], 2, 0.8, 0, 40, "upper") == ("upper", [4, 7])
    assert choose([], [1, 3, 4, 7], 2, 0.8, 0, 40, "lower") == ("lower", [1, 3])


def test_the_draw_protocol_is_fixed() -> None:
    """A checkpoint resumes identically on every platform and version: these were drawn once."""
    assert selections("weighted", 2, 5, 4) == [[0, 2], [1, 3], [3, 4], [1, 3]]
    assert selections("random", 2, 5, 4) == [[0, 1], [0, 3], [0, 3], [0, 2]]


def test_the_turn_counts_choices_and_not_steps() -> None:
    config = DlsConfig(interval=4, warmup=9, policy="cyclic")
    steps = [t for t in range(1, 40) if config.chooses_at(t, None)]
    assert steps[0] == 12
    assert [config.choices_before(t, None) for t in steps] == list(range(len(steps)))
    config = DlsConfig(interval=4, warmup=8)
    assert config.choices_before(12, None) == 0


# ---- in training


@POLICY
@MODELS
def test_frozen_layers_stand_still_and_the_chosen_move(policy: str, make) -> None:
    model = make()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, settings(policy))
    for t in range(1, 10):
        before = [snapshot(layer) for layer in decoder_layers(model)]
        states = [list(optimizer_state(optimizer, layer)) for layer in decoder_layers(model)]
        train_step(model, optimizer, t)
        for i, layer in enumerate(decoder_layers(model)):
            frozen = dls.selected is not None and i not in dls.selected
            assert same(snapshot(layer), before[i]) == frozen, (t, i)
            if frozen:
                now = list(optimizer_state(optimizer, layer))
                assert [name for name, _ in now] == [name for name, _ in states[i]]
                assert same([v for _, v in now], [v for _, v in states[i]])
    assert [(r["step"], r["mode"]) for r in dls.history] == [(t, policy) for t in (4, 6, 8)]
    assert all(len(r["selected"]) == LAYERS // 2 for r in dls.history)
    scored = [all(isinstance(s, float) for s in r["scores"]) for r in dls.history]
    assert scored == [policy == "weighted"] * 3


@pytest.mark.parametrize("policy", UNSCORED)
def test_a_choice_without_scores_computes_no_gradient_that_it_drops(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "layer_scores", lambda *_: pytest.fail("scored"))
    model = lora()
    optimizer = adamw(model)
    dls = DynamicLayerSelection(model, optimizer, settings(policy, warmup=0))
    for t in range(1, 9):
        assert not dls.scoring
        model(**batch(t)).loss.backward()
        computed = {
            i
            for i, layer in enumerate(decoder_layers(model))
            if any(p.grad is not None for p in layer.parameters())
        }
        optimizer.step()
        assert computed == set(range(LAYERS) if dls.selected is None else dls.selected)
        optimizer.zero_grad()
    assert len(dls.history) == 4
    assert not any(
        p.requires_grad
        for layer in decoder_layers(model)
        for name in NORMS
        for p in getattr(layer, name).parameters()
    )


@POLICY
@pytest.mark.parametrize("stop", [4, 5, 7])
def test_resumed_in_the_middle_equals_uninterrupted(policy: str, stop: int, tmp_path: Path) -> None:
    config = settings(policy, k_ratio=0.4)  # 2 of 6: three choices are one round

    def begin(model) -> tuple:
        optimizer = adamw(model)
        return model, optimizer, DynamicLayerSelection(model, optimizer, config)

    whole, optimizer, uninterrupted = begin(full())
    for t in range(1, 13):
        train_step(whole, optimizer, t)

    model, optimizer, dls = begin(full())
    for t in range(1, stop + 1):
        train_step(model, optimizer, t)
    saved = json.dumps(dls.state_dict())
    rest = {"model": snapshot(model), "optimizer": optimizer.state_dict()}

    model = full()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), rest["model"], strict=True):
            parameter.copy_(value)
    optimizer = adamw(model)
    optimizer.load_state_dict(rest["optimizer"])
    dls = DynamicLayerSelection(model, optimizer, config)
    dls.load_state_dict(json.loads(saved))
    for t in range(stop + 1, 13):
        train_step(model, optimizer, t)
    assert dls.state_dict() == uninterrupted.state_dict()
    assert same(snapshot(model), snapshot(whole))
    if policy == "cyclic":
        assert [r["selected"] for r in dls.history] == [[0, 1], [2, 3], [4, 5], [0, 1], [2, 3]]


def test_norms_without_weights_need_no_scores() -> None:
    """OLMo's norms have none, so that the paper's policy raises there."""
    model = tiny_llama()
    for layer in decoder_layers(model):
        for name in ("input_layernorm", "post_attention_layernorm"):
            setattr(layer, name, torch.nn.RMSNorm(16, elementwise_affine=False))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(RosaError, match="have no weight"):
        DynamicLayerSelection(model, adamw(model), settings("weighted"))
    DynamicLayerSelection(model, adamw(model), settings("random")).detach()


def test_what_begins_to_train_later_raises_without_scores_too() -> None:
    model = lora()
    optimizer = adamw(model)
    DynamicLayerSelection(model, optimizer, settings("cyclic", warmup=0))
    model.requires_grad_()
    train_step(model, optimizer, 1)
    with pytest.raises(RosaError, match="trains, but did not when DLS was attached"):
        train_step(model, optimizer, 2)


# ---- as a setting


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"policy": "randm"}, r"dls\.policy must be one of scores, .*did you mean 'random'"),
        ({"policy": None}, r"dls\.policy must be one of"),
        ({"policy": "random", "p_exploit": 0.5}, r"p_exploit=0\.5 has no effect with .*'random'"),
        (
            {"policy": "cyclic", "score": "relative"},
            r"score='relative' has no effect .* scores nothing",
        ),
        ({"policy": "upper", "layers": [1]}, r"dls\.layers is a choice of its own"),
    ],
)
def test_settings_that_contradict_each_other_raise(keys: dict, words: str) -> None:
    with pytest.raises(RosaError, match=words):
        DlsConfig(**keys)


def test_it_is_one_key_of_a_recipe_of_the_command_line_and_of_an_adapter(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: rosa-tiny\ndata: tiny-sums\noutput_dir: x\ndls: {policy: cyclic}\n")
    read = load_recipe(str(recipe))
    assert read.dls == DlsConfig(policy="cyclic")
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(read))
    assert load_recipe(str(again)) == read
    assert load_recipe(str(recipe), "--dls.policy", "random").dls == DlsConfig(policy="random")
    with pytest.raises(RosaError, match="policy"):
        load_recipe(str(recipe), "--dls.policy", "randm")

    RosaConfig(dls=DlsConfig(policy="weighted")).save_pretrained(tmp_path)
    assert RosaConfig.from_pretrained(tmp_path).dls == DlsConfig(policy="weighted")


@POLICY
def test_a_history_is_read_and_said_in_words(policy: str, tmp_path: Path) -> None:
    score = 1.0 if policy == "weighted" else None
    record = {"step": 2, "mode": policy, "scores": [score] * 4, "selected": [0, 3]}
    (tmp_path / "dls_history.jsonl").write_text(json.dumps(record) + "\n")
    words = {
        "random": "1 at random",
        "cyclic": "1 in turn",
        "weighted": "1 in proportion to scores",
        "upper": "1 the last",
        "lower": "1 the first",
    }
    assert f"1 choice among 4 layers: {words[policy]};" in summarize(read_history(tmp_path))
