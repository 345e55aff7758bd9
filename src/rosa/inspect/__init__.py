"""What a model looks like inside: how strong its queries and keys are, dimension by dimension.

inspection = inspect_model("runs/tiny")              # a model or an adapter, by name or loaded
draw_figure1(inspection, "figure1.png")              # the paper's Figure 1, on this model
draw_comparison(inspection, "before_after.png")      # with an adapter
draw_adapter(inspection, "adapter.png")              # with a RoSA adapter: what it does

texts ─▶ token ids ─▶ model ─▶ hooks before the rotation ─▶ rotate ─▶ Σ z² per head x dimension
"""

from __future__ import annotations

from rosa.inspect.draw import draw_figure1
from rosa.inspect.draw_adapter import draw_adapter, draw_comparison
from rosa.inspect.inspection import Inspection, check_layer, inspect_model
from rosa.inspect.texts import Texts, as_texts, read_source, read_texts

__all__ = [
    "Inspection",
    "Texts",
    "as_texts",
    "check_layer",
    "draw_adapter",
    "draw_comparison",
    "draw_figure1",
    "inspect_model",
    "read_source",
    "read_texts",
]
