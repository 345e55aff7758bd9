"""Is one method better than another, or luckier? Three answers to three questions.

welch      over seeds: would other seeds say the same? Two-sided, unequal variances (Welch).
mcnemar    over examples: would other examples say the same of these trained models? Exact.
bootstrap  the same question as an interval of the difference.

Seeds of one method answer the same examples, so their answers are not independent: counting each
answer as a case of its own would find differences where there are none. Here an example is one
case, however many seeds answered it; it enters with the share of seeds that got it right. What a
new seed would bring is the t-test's question and not that of the other two.

Where a test cannot be made its p is None and `reason` says why; nothing is ever nan.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SIGNIFICANCE_LEVEL = 0.05
RESAMPLES = 10_000
SAME = 1e-9  # shares and accuracies nearer than this are equal, up to rounding


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation (n - 1 in its denominator) of a method's seeds."""

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
    """Exact McNemar test: examples that one or the other side gets right more often."""

    p: float | None = None
    ahead: int | None = None
    behind: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ConfidenceInterval:
    """A 95 % interval."""

    low: float | None = None
    high: float | None = None
    reason: str | None = None


def welch(ours: Sequence[float], theirs: Sequence[float]) -> TTest:
    """Two-sided t-test of the difference of means, variances not assumed equal.

    Args:
        ours, theirs: one value per seed. Seeds are not paired: the same seed in two methods
            shares the order of the data and little else.
    """
    from scipy import stats

    few = min(len(ours), len(theirs))
    if few < 2:
        return TTest(reason="one seed" if few else "no seed")
    if max(np.ptp(ours), np.ptp(theirs)) < SAME:
        return TTest(reason="no spread between seeds")
    with warnings.catch_warnings():  # SciPy warns where one side has no spread, which is allowed
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
    """Exact two-sided McNemar test, one case per example.

    An example counts as ahead where `ours` got it right in a larger share of its seeds, as behind
    where in a smaller; equal shares say nothing. If neither method were better, ahead and behind
    would be a fair coin's: a binomial test. With one seed each this is the textbook's test.

    Args:
        ours, theirs: shares of seeds that got an example right, in the same order of examples.
    """
    from scipy import stats

    difference = _difference(ours, theirs)
    if not len(difference):
        return McNemar(reason="no examples")
    ahead, behind = int(np.sum(difference > SAME)), int(np.sum(difference < -SAME))
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
    """95 % percentile interval of the difference of micro averages, in percent points.

    Examples are drawn with replacement within each task, each with all its seeds' answers on both
    sides. The differences of shares take few values, so what is drawn is how often each occurs: a
    multinomial, the very same distribution as drawing examples one by one, in no time.

    Args:
        ours, theirs: per task, the shares of seeds that got an example right.
    """
    tasks = [_difference(a, b) for a, b in zip(ours, theirs, strict=True)]
    examples = sum(map(len, tasks))
    if examples < 2:
        return ConfidenceInterval(reason="fewer than two examples")
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for task in tasks:
        values, counts = np.unique(np.round(task, 12), return_counts=True)
        drawn = generator.multinomial(len(task), counts / len(task), size=resamples)
        total += drawn @ values
    low, high = np.quantile(
        100 * total / examples, [SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2]
    )
    return ConfidenceInterval(float(low), float(high))


def _difference(ours: ArrayLike, theirs: ArrayLike) -> np.ndarray:
    return np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's correction: the chance of any false finding among the tests stays below the level.

    The smallest of m values is multiplied by m, the next by m - 1, and so on, never falling and
    never above 1. Tests that could not be made (None) are not counted.
    """
    made = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(made):
        largest = max(largest, min(1.0, p * (len(made) - rank)))
        corrected[i] = largest
    return corrected


def format_p_value(p: float | None) -> str:
    """A p value as a table prints it; a dash where there is none."""
    if p is None or math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
