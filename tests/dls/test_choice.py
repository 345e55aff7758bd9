"""DLS: the settings, and the choice as a pure function."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa import DlsConfig
from rosa.dls.choice import choose, num_selected, sample_k, top_k
from rosa.errors import RosaError


def test_the_paper_s_defaults() -> None:
    assert DlsConfig().to_dict() == {
        "k_ratio": 0.5,
        "interval": 40,
        "p_exploit": 0.8,
        "warmup": 0.05,
        "seed": 0,
        "layers": None,
        "policy": "scores",
        "score": "gradient",
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k_ratio", 0),
        ("k_ratio", 1.01),
        ("k_ratio", float("nan")),
        ("k_ratio", "half"),
        ("interval", 0),
        ("interval", 2.5),
        ("interval", True),
        ("p_exploit", -0.1),
        ("p_exploit", 1.1),
        ("warmup", -1),
        ("warmup", float("inf")),
        ("seed", 0.5),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(RosaError, match=rf"^dls\.{key} must be .*, not "):
        DlsConfig(**{key: value})


def test_settings_from_a_file_s_keys() -> None:
    assert DlsConfig.of({"interval": 7}) == DlsConfig(interval=7)
    assert DlsConfig.of(DlsConfig(seed=3)) == DlsConfig(seed=3)
    assert DlsConfig.of(None) == DlsConfig()
    with pytest.raises(
        RosaError,
        match=r"no key 'intervall' \(did you mean 'interval'\?\); its keys are k_ratio",
    ):
        DlsConfig.of({"intervall": 7})


def test_settings_do_not_load_pytorch() -> None:
    code = "import sys, rosa.dls; rosa.dls.DlsConfig(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_warmup_is_a_share_below_one_and_steps_from_one_on() -> None:
    assert DlsConfig(warmup=0.05).warmup_steps(2000) == 100
    assert DlsConfig(warmup=0.29).warmup_steps(100) == 29  # 0.29 * 100 < 29 in floating point
    assert DlsConfig(warmup=0).warmup_steps(None) == 0
    assert DlsConfig(warmup=1).warmup_steps(None) == 1
    assert DlsConfig(warmup=30).warmup_steps(2000) == 30
    with pytest.raises(RosaError, match="total_steps is needed"):
        DlsConfig(warmup=0.05).warmup_steps(None)


def test_steps_that_choose() -> None:
    config = DlsConfig(interval=4, warmup=8)
    assert [t for t in range(1, 25) if config.chooses_at(t, None)] == [12, 16, 20, 24]


def test_k_is_rounded_as_python_rounds_and_at_least_one() -> None:
    assert [num_selected(0.5, layers) for layers in (1, 2, 3, 4, 5, 6, 7)] == [1, 1, 2, 2, 2, 3, 4]
    assert num_selected(0.01, 32) == 1
    assert num_selected(1, 28) == 28
    assert num_selected(0.25, 42) == 10


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.data())
def test_the_best_are_no_worse_than_the_rest(scores: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    chosen = top_k(scores, range(len(scores)), k)
    rest = [i for i in range(len(scores)) if i not in chosen]
    assert len(set(chosen)) == k
    assert chosen == sorted(chosen)
    for outside in rest:
        for inside in chosen:
            assert (scores[inside], -inside) > (scores[outside], -outside)  # ties: lower index


def test_equal_scores_take_the_lower_layers() -> None:
    assert top_k([1.0] * 6, range(6), 3) == [0, 1, 2]
    assert top_k([1.0, 2.0, 1.0, 2.0, 1.0], range(5), 3) == [0, 1, 3]


def test_only_candidates_are_chosen() -> None:
    scores = [9.0, 1.0, 8.0, 2.0]
    assert top_k(scores, [1, 3], 1) == [3]
    for step in range(50):
        assert set(choose(scores, [1, 3], 1, 0.5, 0, step).selected) <= {1, 3}


def test_exploits_with_the_given_probability() -> None:
    trials, p = 4000, 0.8
    modes = Counter(choose([1.0, 2.0], [0, 1], 1, p, 0, step).mode for step in range(trials))
    assert set(modes) == {"exploit", "explore"}
    spread = math.sqrt(trials * p * (1 - p))
    assert abs(modes["exploit"] - trials * p) < 4 * spread


def test_probabilities_zero_and_one_are_certain() -> None:
    scores = [1.0, 3.0, 2.0]
    for step in range(200):
        assert choose(scores, range(3), 1, 1.0, 0, step) == ("exploit", [1])
        assert choose(scores, range(3), 1, 0.0, 0, step).mode == "explore"


def test_exploring_draws_every_subset_alike() -> None:
    """Chi-square over the C(6, 3) = 20 subsets: 99.99 % quantile with 19 degrees is 50.8."""
    trials = 8000
    counts = Counter(
        tuple(choose([0.0] * 6, range(6), 3, 0.0, seed=5, step=step).selected)
        for step in range(trials)
    )
    expected = trials / 20
    assert len(counts) == 20
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 50.8


def test_a_draw_has_no_layer_twice() -> None:
    generator = random.Random(0)
    for k in range(1, 9):
        assert len(set(sample_k(range(8), k, generator))) == k


def test_same_seed_same_choices_and_another_seed_others() -> None:
    def run(seed: int) -> list[list[int]]:
        return [choose([0.0] * 8, range(8), 4, 0.0, seed, step).selected for step in range(40)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_the_draw_protocol_is_fixed() -> None:
    """A checkpoint resumes identically on every platform and version: these were drawn once."""
    choices = [choose([3.0, 1.0, 2.0, 5.0], range(4), 2, 0.5, 0, t) for t in (40, 80, 120, 160)]
    assert choices == [
        ("exploit", [0, 3]),
        ("explore", [1, 2]),
        ("exploit", [0, 3]),
        ("exploit", [0, 3]),
    ]
