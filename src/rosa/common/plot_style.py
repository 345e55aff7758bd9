"""The style of every plot: colors, fonts, a figure with title and subtitle."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

INK, SOFT = "#16202b", "#5b6b7a"
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


@contextmanager
def canvas(width: float, height: float, title: str, subtitle: str) -> Any:
    """A figure in the common style (`with canvas(...) as figure`), with title and subtitle."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display needed
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        below_title = (0, 0, 1, 1 - 0.62 / height)
        layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1, rect=below_title)
        figure = Figure(figsize=(width, height), layout=layout)
        size = min(13.0, 1450 / len(title))
        figure.text(0.12 / width, 1 - 0.12 / height, title, weight="bold", size=size, va="top")
        figure.text(0.12 / width, 1 - 0.40 / height, subtitle, color=SOFT, size=9, va="top")
        yield figure
