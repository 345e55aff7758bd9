"""The style of every plot: colors, fonts, a figure with title and subtitle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

INK, SOFT, GRID = "#16202b", "#5b6b7a", "#e6e9ec"
STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "text.parse_math": False,  # a "$" in a name is no formula
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}
MIN_POINTS = 4.0  # percentage points that an axis of accuracies spans at least


@contextmanager
def styled_figure(width: float, height: float, layout: Any = None) -> Iterator[Any]:
    """A figure of so many inches, to be drawn and saved in the common style within `with`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed

    with rc_context(STYLE):
        yield Figure(figsize=(width, height), layout=layout)


@contextmanager
def canvas(width: float, height: float, title: str, subtitle: str) -> Iterator[Any]:
    """A `styled_figure` with title and subtitle."""
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    below_title = (0, 0, 1, 1 - 0.62 / height)
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, rect=below_title)
    with styled_figure(width, height, layout) as figure:
        size = min(13.0, 1450 / len(title))
        figure.text(0.12 / width, 1 - 0.12 / height, title, weight="bold", size=size, va="top")
        figure.text(0.12 / width, 1 - 0.40 / height, subtitle, color=SOFT, size=9, va="top")
        yield figure


def percent_axis(axes: Any, axis: Literal["x", "y"], values: Sequence[float]) -> None:
    """Limits for accuracies: not so near that noise fills the axis, nor far beyond 0 and 100."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    margin = max(0.1 * (high - low), (MIN_POINTS - (high - low)) / 2)
    low, high = max(low - margin, min(low, 0) - 2), min(high + margin, max(high, 100) + 2)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    shown = [tick for tick in ticks if max(low, 0) <= tick <= min(high, 100)]
    axes.set(**{f"{axis}lim": (low, high), f"{axis}ticks": shown})


def remove_frame(axes: Any) -> None:
    """No frame and no ticks, only their labels."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
