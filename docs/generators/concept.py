"""Draws docs/images/{roae,dls}.png, the two pictures of the concept page.

python -m docs.generators.concept
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

FROZEN, TRAINED, SIGNAL, INK = "#e7edf3", "#fbd9b5", "#cfe8cf", "#1b2733"
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
    """One attention module: the frozen path above, the adapter below, the low dimensions right."""
    figure, axes = canvas(11, 4.6)
    box(axes, 0.2, 2.6, 1.2, 0.7, "H\n(b, l, d)")
    box(axes, 2.1, 3.3, 1.5, 0.6, "q_proj")
    box(axes, 2.1, 2.2, 1.5, 0.6, "k_proj")
    box(axes, 4.2, 3.3, 1.3, 0.6, "RoPE")
    box(axes, 4.2, 2.2, 1.3, 0.6, "RoPE")
    for y in (3.6, 2.5):
        arrow(axes, (1.4, 2.95), (2.1, y))
        arrow(axes, (3.6, y), (4.2, y))
        arrow(axes, (5.5, y), (6.2, y))
    box(axes, 2.1, 0.5, 1.5, 0.7, "A (r × d)\nB (h·d_low × r)", TRAINED, 8)
    box(axes, 4.2, 0.5, 1.3, 0.7, "SiLU → S_q", SIGNAL)
    box(axes, 6.2, 0.5, 1.9, 0.7, "W_GQA (low rank)\nS_k = S_q · W_GQA", TRAINED, 8)
    arrow(axes, (0.8, 2.6), (2.1, 0.85), 0.25)
    arrow(axes, (3.6, 0.85), (4.2, 0.85))
    arrow(axes, (5.5, 0.85), (6.2, 0.85))
    for y, name in ((3.35, "q"), (2.25, "k")):
        head(axes, 6.2, y, name)
    axes.plot([5.85, 5.85, 7.38], [0.85, 3.05, 3.05], color=INK, lw=1.1)
    arrow(axes, (7.38, 3.05), (7.38, 3.33))
    arrow(axes, (7.38, 1.2), (7.38, 2.22))
    box(axes, 9.7, 2.6, 1.1, 0.9, "attention\n(SDPA, flash,\nflex, eager)", size=7.5)
    arrow(axes, (8.9, 3.6), (9.7, 3.2))
    arrow(axes, (8.9, 2.5), (9.7, 2.9))
    axes.text(7.55, 4.02, "one head, rotated: fast … slow | fast … slow", ha="center", fontsize=8)
    axes.text(8.62, 1.55, "z ← z + z ⊙ (α·S)\non the slow dimensions only", fontsize=8.5, color=INK)
    axes.text(
        0.2,
        4.35,
        "RoAE: input-conditioned modulation of the low-frequency rotary dimensions",
        fontsize=11,
        weight="bold",
        color=INK,
    )
    axes.text(
        0.2, 0.1, "blue: frozen    orange: trained    green: the signal", fontsize=8, color=INK
    )
    figure.savefig(OUT / "roae.png", dpi=140)


def head(axes, x, y, name) -> None:
    """A head vector of 16 cells in two halves; the last quarter of each half is adapted."""
    cell = 2.7 / 16
    for i in range(16):
        low = i % 8 >= 6
        axes.add_patch(
            Rectangle((x + i * cell, y), cell, 0.5, fc=SIGNAL if low else FROZEN, ec=INK, lw=0.6)
        )
    axes.plot([x + 8 * cell] * 2, [y - 0.06, y + 0.56], color=INK, lw=1.6)
    axes.text(x - 0.12, y + 0.62, name, fontsize=9, style="italic", color=INK)


def draw_dls() -> None:
    """Six layers over three intervals: all, then the best three, then three at random."""
    figure, axes = canvas(11, 3.9)
    axes.text(
        0.2,
        3.6,
        "DLS: every u steps, score the layers and train the k that matter",
        fontsize=11,
        weight="bold",
        color=INK,
    )
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
                f"layer {layer}" + ("" if on else "  ❄".replace("❄", "frozen")),
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
