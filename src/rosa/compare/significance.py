"""Significance tests of the difference between two methods.

welch      over seeds: a two-sided t-test with unequal variances. Would other seeds agree?
mcnemar    over examples: an exact test. Would other examples agree about these trained models?
bootstrap  the same question, as a confidence interval of the difference.

The seeds of a method answer the same examples, so their answers are not independent. An example is
therefore one case, however many seeds answered it, with the share of seeds that got it right.

Where a test is impossible its p is None and `reason` says why; no value is ever nan.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SIGNIFICANCE_LEVEL = 0.05
RESAMPLES = 10_000
TOLERANCE = 1e-9  # shares and accuracies nearer than this are equal


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation (n - 1) over a method's seeds."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanStd:
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values))


@dataclass(frozen=True)
class TTest:
    """Welch's t-test: p, statistic, degrees of freedom, 95 % interval of the difference."""

    p: float | None = None
    statistic: float | None = None
    df: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test: how many examples each side gets right more often than the other."""

    p: float | None = None
    ahead: int | None = None
    behind: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % confidence interval."""

    low: float | None = None
    high: float | None = None
    reason: str | None = None


def welch(ours: Sequence[float], theirs: Sequence[float]) -> TTest:
    """Two-sided t-test of the difference of means, with unequal variances.

    Args:
        ours, theirs: one value per seed. Seeds are not paired: the same seed in two methods
            shares the order of the data and little else.
    """
    from scipy import stats

    seeds = min(len(ours), len(theirs))
    if seeds < 2:
        return TTest(reason="one seed" if seeds else "no seed")
    if max(np.ptp(ours), np.ptp(theirs)) < TOLERANCE:
        return TTest(reason="no spread between seeds")
    with warnings.catch_warnings():  # SciPy warns if one side has no spread, which is allowed
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = result.confidence_interval(1 - SIGNIFICANCE_LEVEL)
    return TTest(
        p=float(result.pvalue),
        statistic=float(result.statistic),
        df=float(result.df),
        low=float(interval.low),
        high=float(interval.high),
    )


def mcnemar(ours: ArrayLike, theirs: ArrayLike) -> McNemar:
    """Exact two-sided McNemar test with one case per example.

    An example counts as ahead if `ours` got it right in a larger share of its seeds, as behind if
    in a smaller; equal shares do not count. With one seed each this is the textbook's test.

    Args:
        ours, theirs: shares of seeds that got an example right, in the same order of examples.
    """
    from scipy import stats

    difference = np.subtract(ours, theirs, dtype=float)
    if not len(difference):
        return McNemar(reason="no examples")
    ahead, behind = (int(np.sum(sign * difference > TOLERANCE)) for sign in (1, -1))
    if ahead + behind == 0:
        return McNemar(1.0, 0, 0)
    return McNemar(float(stats.binomtest(ahead, ahead + behind).pvalue), ahead, behind)


def bootstrap(
    ours: Sequence[ArrayLike],
    theirs: Sequence[ArrayLike],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ConfidenceInterval:
    """95 % percentile interval of the difference of micro averages, in percentage points.

    Examples are drawn with replacement within each task, each with all its seeds' answers on both
    sides.

    Args:
        ours, theirs: per task, the shares of seeds that got an example right.
    """
    tasks = [np.subtract(a, b, dtype=float) for a, b in zip(ours, theirs, strict=True)]
    examples = sum(map(len, tasks))
    if examples < 2:
        return ConfidenceInterval(reason="fewer than two examples")
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for task in tasks:
        # Differences of shares take few values, so draw how often each occurs: distributed as in
        # `scipy.stats.bootstrap`, which takes 5 s for the 22,000 commonsense questions.
        values, counts = np.unique(np.round(task, 12), return_counts=True)
        drawn = generator.multinomial(len(task), counts / len(task), size=resamples)
        total += drawn @ values
    tail = SIGNIFICANCE_LEVEL / 2
    low, high = np.quantile(100 * total / examples, [tail, 1 - tail])
    return ConfidenceInterval(float(low), float(high))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of p values for the number of tests; None where there was no test.

    The smallest of m values is multiplied by m, the next by m - 1, and so on, never falling and
    never above 1.
    """
    tested = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        corrected[i] = largest
    return corrected


def format_p_value(p: float | None) -> str:
    """A p value as a table prints it; a dash if there is none."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
