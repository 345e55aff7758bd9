"""The tests behind the stars: against references, against hand, and against chance itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rosa.compare.significance import (
    SIGNIFICANCE_LEVEL,
    MeanStd,
    bootstrap,
    format_p_value,
    holm,
    mcnemar,
    welch,
)

values = st.lists(st.floats(0, 100), min_size=2, max_size=6)
shares = st.lists(
    st.tuples(st.integers(0, 3).map(lambda k: k / 3), st.integers(0, 4).map(lambda k: k / 4)),
    min_size=2,
    max_size=40,
)


def test_welch_by_hand():
    """Means 3 and 6; variances 1 and 4 over 3 seeds: t = -3 / sqrt(1/3 + 4/3)."""
    found = welch([2, 3, 4], [4, 6, 8])
    t = -3 / math.sqrt(5 / 3)
    df = (5 / 3) ** 2 / ((1 / 3) ** 2 / 2 + (4 / 3) ** 2 / 2)
    assert found.statistic == pytest.approx(t)
    assert found.df == pytest.approx(df)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), df))
    half = stats.t.ppf(0.975, df) * math.sqrt(5 / 3)
    assert (found.low, found.high) == pytest.approx((-3 - half, -3 + half))


@given(values, values)
def test_welch_has_a_number_or_a_reason_and_no_favorite(a, b):
    one, other = welch(a, b), welch(b, a)
    assert (one.p is None) == (one.reason is not None)
    if one.p is not None:
        assert 0 <= one.p <= 1
        assert other.p == pytest.approx(one.p)
        assert other.statistic == pytest.approx(-one.statistic)
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_welch_where_it_cannot_be_made():
    assert welch([1.0], [1.0, 2.0]).reason == "one seed"
    assert welch([1.0, 2.0], []).reason == "no seed"
    assert welch([1.0, 1.0], [2.0, 2.0]).reason == "no spread between seeds"
    assert welch([1.0, 1.0], [2.0, 2.5]).p is not None  # one side's spread is enough


def test_a_sample_of_one_has_no_spread():
    assert MeanStd.of([3.0]) == MeanStd(3.0, None, 1)
    assert MeanStd.of([1.0, 3.0]) == MeanStd(2.0, pytest.approx(math.sqrt(2)), 2)


def test_mcnemar_by_hand():
    """8 ahead, 1 behind: 2 (C(9,0) + C(9,1)) / 2^9."""
    ours = [1] * 8 + [0] + [1, 0]
    theirs = [0] * 8 + [1] + [1, 0]
    found = mcnemar(ours, theirs)
    assert (found.ahead, found.behind) == (8, 1)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)


def test_mcnemar_counts_an_example_once_however_many_seeds_answered_it():
    once = mcnemar([1, 0, 1], [0, 0, 1])
    again = mcnemar([3 / 3, 0 / 3, 3 / 3], [0 / 5, 0 / 5, 5 / 5])
    assert once == again
    assert mcnemar([1 / 3, 2 / 3], [2 / 6, 4 / 6]).p == 1.0  # equal shares, other denominators


@given(shares)
def test_mcnemar_and_the_interval_have_no_favorite(pairs):
    a, b = zip(*pairs, strict=True)
    one, other = mcnemar(a, b), mcnemar(b, a)
    assert one.p == other.p
    assert (one.ahead, one.behind) == (other.behind, other.ahead)
    there, back = bootstrap([a], [b], resamples=2000), bootstrap([b], [a], resamples=2000)
    differences = np.abs(np.subtract(a, b))
    a_step = 100 * differences.max() / len(a)  # means of few values lie on a grid
    tolerance = max(100 * 3 * np.std(np.subtract(a, b)) / math.sqrt(len(a)) / 5, a_step) + 1e-6
    assert there.low == pytest.approx(-back.high, abs=tolerance)
    assert there.low <= 100 * np.mean(np.subtract(a, b)) + 1e-6 <= there.high + 2e-6 + tolerance


def test_nothing_to_compare():
    assert mcnemar([], []).reason == "no examples"
    assert mcnemar([1, 1], [1, 1]).p == 1.0
    assert bootstrap([[1]], [[0]]).reason == "fewer than two examples"
    assert bootstrap([[1, 1]], [[0, 0]]).low == 100.0


def test_the_interval_is_scipys_paired_bootstrap():
    generator = np.random.default_rng(0)
    a = generator.integers(0, 4, 300) / 3
    b = generator.integers(0, 3, 300) / 2
    ours = bootstrap([a], [b], resamples=20_000)
    theirs = stats.bootstrap(
        (100 * (a - b),), np.mean, n_resamples=20_000, method="percentile", rng=generator
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.25)


def test_the_interval_draws_within_tasks():
    """Two tasks, each without any spread of its own: no draw can change the micro average."""
    found = bootstrap([[1] * 50, [0] * 50], [[0] * 50, [1] * 50])
    assert (found.low, found.high) == (0.0, 0.0)
    assert bootstrap([[1] * 50 + [0] * 50], [[0] * 50 + [1] * 50]).low < -10


def test_the_interval_is_reproducible():
    a, b = np.random.default_rng(5).random((2, 100))
    assert bootstrap([a], [b]) == bootstrap([a], [b])
    assert bootstrap([a], [b]) != bootstrap([a], [b], seed=1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1) | st.none(), max_size=8))
def test_holm_is_between_no_correction_and_bonferroni(ps):
    made = sum(p is not None for p in ps)
    for before, after in zip(ps, holm(ps), strict=True):
        if before is None:
            assert after is None
        else:
            assert before <= after <= min(1, before * made)


def test_p_values_as_tables_print_them():
    assert [format_p_value(p) for p in (None, 0.0004, 0.0496, 1.0)] == [
        "–",
        "< 0.001",
        "0.050",
        "1.000",
    ]


# What chance does: no method is better here, and about one test in twenty may say otherwise.


def test_welch_is_wrong_as_often_as_it_says():
    generator = np.random.default_rng(1)
    found = [
        welch(80 + generator.normal(size=5), 80 + 3 * generator.normal(size=5)).p
        for _ in range(600)
    ]
    assert np.mean(np.array(found) < SIGNIFICANCE_LEVEL) <= 0.07


def null_study(generator, examples=200, seeds=5):
    """Two equal methods: what is hard is shared, each has its own taste, each seed its luck."""
    hard = generator.normal(size=examples)
    sides = []
    for _ in range(2):
        taste = generator.normal(size=examples)
        luck = 0.5 * generator.normal(size=(seeds, examples))
        sides.append(hard + taste + luck > 0)
    return sides


def test_mcnemar_is_wrong_as_often_as_it_says_and_pooled_answers_are_not():
    generator = np.random.default_rng(2)
    ours, pooled = [], []
    for _ in range(400):
        a, b = null_study(generator)
        ours.append(mcnemar(a.mean(0), b.mean(0)).p)
        pooled.append(mcnemar(a.ravel(), b.ravel()).p)
    assert np.mean(np.array(ours) < SIGNIFICANCE_LEVEL) <= 0.07
    assert (
        np.mean(np.array(pooled) < SIGNIFICANCE_LEVEL) > 0.2
    )  # why seeds are not counted as examples


def test_the_interval_covers_what_it_says():
    generator = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        a, b = null_study(generator)
        found = bootstrap([a.mean(0)], [b.mean(0)], resamples=1000)
        covered.append(found.low <= 0 <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.985


def test_a_real_difference_is_found():
    generator = np.random.default_rng(4)
    a, b = null_study(generator, examples=500)
    better = a | (generator.random(a.shape) < 0.3)
    assert mcnemar(better.mean(0), b.mean(0)).p < 0.001
    assert bootstrap([better.mean(0)], [b.mean(0)]).low > 0
