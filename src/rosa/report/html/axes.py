"""Where values lie on a plot, and which of them get a tick."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from rosa.common.formatting import format_count

STEPS = (1, 2, 2.5, 5, 10)
LEAST_PERCENT = 4.0  # an axis of accuracies spans at least this many points
WIDE = 20  # values that span more than this factor are drawn on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    """A labelled position: on an axis from 0 (low) to 1 (high), or in a picture."""

    at: float
    text: str
    value: float = 0.0


@dataclass(frozen=True)
class Axis:
    """A stretch of values, linear or logarithmic."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value: 0 at `low`, 1 at `high`, beyond them outside."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int = 5) -> list[Tick]:
        """Round values inside the axis, `about` as many as wished."""
        values = _log_ticks(self, about) if self.log else _linear_ticks(self, about)
        return [Tick(self.at(v), format_count(v), v) for v in values]


def fit(
    values: Iterable[float], *, log: bool = False, margin: float = 0.06, least: float = 0.0
) -> Axis:
    """The axis that shows all values with a margin (a share of the span) on both sides.

    Args:
        least: a linear axis shows at least this much, so that noise does not fill a plot.
    """
    kept = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not kept:
        return Axis(1, 10, True) if log else Axis(0, 1)
    low, high = min(kept), max(kept)
    if log:
        span = math.log(high / low) or 1.0
        return Axis(low * math.exp(-margin * span), high * math.exp(margin * span), True)
    span = high - low
    if span <= 1e-9 * abs(high):  # all the same, up to rounding
        span = abs(high) * 0.1 or 1.0
    more = max(0.0, least - (high - low)) / 2
    return Axis(low - margin * span - more, high + margin * span + more)


def fit_percent(values: Iterable[float], margin: float = 0.06) -> tuple[Axis, list[Tick]]:
    """The axis of accuracies, with those of its ticks that an accuracy can have."""
    axis = fit(values, margin=margin, least=LEAST_PERCENT)
    return axis, [tick for tick in axis.ticks() if 0 <= tick.value <= 100]


def is_wide(values: Iterable[float]) -> bool:
    """Whether positive values span so much that a linear axis would hide the small ones."""
    kept = [v for v in values if math.isfinite(v)]
    return bool(kept) and min(kept) > 0 and max(kept) > WIDE * min(kept)


def _linear_ticks(axis: Axis, about: int) -> list[float]:
    rough = (axis.high - axis.low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(s * power for s in STEPS if s * power >= rough * (1 - 1e-9))
    first = math.ceil(axis.low / step - 1e-9)
    count = math.floor(axis.high / step + 1e-9) - first + 1
    return [float(f"{(first + i) * step:.12g}") for i in range(count)]


def _log_ticks(axis: Axis, about: int) -> list[float]:
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    # The finest of these that does not crowd the axis; a linear scale where all are too coarse.
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [d * 10.0**p for p in powers for d in digits]
        inside = [v for v in values if axis.low <= v <= axis.high]
        if len(inside) <= about:
            break
    if len(inside) >= 2:
        return inside[:: max(1, math.ceil(len(inside) / about))]
    return [v for v in _linear_ticks(Axis(axis.low, axis.high), about) if v > 0]
