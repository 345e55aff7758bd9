"""Draws docs/images/{roae,dls}.png, the two pictures of how it works.

python -m docs.generators.concept
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FROZEN, TRAINED, SIGNAL, INK = "#e7edf3", "#fbd9b5", "#cfe8cf", "#1b2733"
SLOT = 3 / 8  # two of a head's 16 cells
OUT = Path(__file__).parents[1] / "images"


def canvas(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def box(axes, x, y, w, h, text, color=FROZEN, size=9):
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.08", fc=color, ec=INK)
    )
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, color=INK)


def arrow(axes, start, end, curve=0.0):
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=11,
            color=INK,
            lw=1.1,
            connectionstyle=f"arc3,rad={curve}",
            shrinkA=0,
            shrinkB=0,
        )
    )


def draw_roae() -> None:
    """One attention module: the frozen paths of q and k, and the adapter between them."""
    figure, axes = canvas(11, 4.5)
    box(axes, 0.2, 1.85, 1.2, 0.8, "H\n(b, l, d)")
    for y, name in ((3.35, "q"), (0.65, "k")):
        box(axes, 2.1, y, 1.4, 0.6, f"{name}_proj")
        box(axes, 4.1, y, 1.1, 0.6, "RoPE")
        head(axes, 5.9, y + 0.05, name)
        arrow(axes, (1.4, 2.35 if name == "q" else 2.15), (2.1, y + 0.3))
        arrow(axes, (3.5, y + 0.3), (4.1, y + 0.3))
        arrow(axes, (5.2, y + 0.3), (5.9, y + 0.3))
        arrow(axes, (8.9, y + 0.3), (9.7, 2.45 if name == "q" else 2.05))
    box(axes, 2.1, 1.85, 1.4, 0.8, "A · B\nrank r", TRAINED)
    box(axes, 4.1, 1.85, 1.1, 0.8, "SiLU\n→ S_q", SIGNAL)
    box(axes, 6.0, 1.72, 1.75, 0.66, "W_GQA, rank r\n→ S_k", TRAINED, 8.5)
    box(axes, 9.7, 1.8, 1.15, 0.9, "attention\n(SDPA, flash,\nflex, eager)", size=7.5)
    arrow(axes, (1.4, 2.25), (2.1, 2.25))
    arrow(axes, (3.5, 2.25), (4.1, 2.25))
    arrow(axes, (5.2, 2.05), (6.0, 2.05))
    signal(axes, [(5.2, 2.45), (5.55, 2.45), (5.55, 2.85)], 2.85, 3.4)
    signal(axes, [(6.9, 1.72), (6.9, 1.55)], 1.55, 1.2)
    axes.text(5.9 + 2 * SLOT, 4.25, "fast … slow", ha="center", fontsize=8, color=INK)
    axes.text(5.9 + 6 * SLOT, 4.25, "fast … slow", ha="center", fontsize=8, color=INK)
    axes.text(7.95, 2.02, "z ← z + z ⊙ (α·S)", fontsize=9, color=INK)
    legend = [(0.2, FROZEN, "frozen"), (1.3, TRAINED, "trained")]
    legend.append((2.45, SIGNAL, "signal, and the slow dimensions it modulates"))
    for x, color, label in legend:
        axes.add_patch(Rectangle((x, 0.05), 0.2, 0.2, fc=color, ec=INK, lw=0.6))
        axes.text(x + 0.28, 0.15, label, va="center", fontsize=8, color=INK)
    axes.text(2.8, 2.78, "the adapter", ha="center", fontsize=8, style="italic", color=INK)
    figure.savefig(OUT / "roae.png", dpi=140)


def signal(axes, path, rail, end) -> None:
    """From a signal's box along a rail to the slow quarter of both halves of a head."""
    slow = [5.9 + SLOT * (half * 4 + 3.5) for half in (0, 1)]
    xs, ys = zip(*path, (path[-1][0], rail), (slow[1], rail), strict=True)
    axes.plot(xs, ys, color=INK, lw=1.1)
    for x in slow:
        arrow(axes, (x, rail), (x, end))


def head(axes, x, y, name) -> None:
    """A head vector of 16 cells in two halves; the last quarter of each half is adapted."""
    cell = SLOT / 2
    for i in range(16):
        low = i % 8 >= 6
        axes.add_patch(
            Rectangle((x + i * cell, y), cell, 0.5, fc=SIGNAL if low else FROZEN, ec=INK, lw=0.6)
        )
    axes.plot([x + 8 * cell] * 2, [y - 0.06, y + 0.56], color=INK, lw=1.6)
    axes.text(x - 0.2, y + 0.55, name, fontsize=10, style="italic", color=INK)


def draw_dls() -> None:
    """Six layers over three intervals: all, then the best three, then three at random."""
    figure, axes = canvas(11, 3.4)
    columns = [
        (0.9, "warm-up: every layer trains", range(6)),
        (3.6, "t = u: exploit\n(the k best scores)", (0, 3, 4)),
        (6.3, "t = 2u: explore\n(k at random)", (1, 2, 4)),
        (9.0, "t = 3u: exploit", (0, 4, 5)),
    ]
    for x, title, chosen in columns:
        for layer in range(6):
            on = layer in chosen
            box(
                axes,
                x,
                0.35 + layer * 0.4,
                1.6,
                0.34,
                f"layer {layer}" + ("" if on else "  frozen"),
                TRAINED if on else FROZEN,
                7.5,
            )
        axes.text(x + 0.8, 3.02, title, ha="center", va="center", fontsize=8, color=INK)
    for x in (2.55, 5.25, 7.95):
        arrow(axes, (x, 1.6), (x + 0.95, 1.6))
        axes.text(x + 0.47, 1.78, "u steps", ha="center", fontsize=7.5, color=INK)
    axes.text(
        0.2,
        0.05,
        "score(i) = √(‖∇ norm before attention‖² + ‖∇ norm before feed-forward‖²);"
        "  frozen: no gradient, no momentum, no weight decay",
        fontsize=8,
        color=INK,
    )
    figure.savefig(OUT / "dls.png", dpi=140)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    draw_roae()
    draw_dls()
