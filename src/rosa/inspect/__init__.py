"""What a model looks like inside: how strong its queries and keys are, dimension by dimension.

inspection = inspect_model("runs/tiny")              # a model or an adapter, by name or loaded
draw_figure1(inspection, "figure1.png")              # the paper's Figure 1, on this model
draw_comparison(inspection, "before_after.png")      # with an adapter
draw_adapter(inspection, "adapter.png")              # with a RoSA adapter: what it does

texts ─▶ token ids ─▶ model ─▶ hooks before the rotation ─▶ rotate ─▶ Σ z² per head x dimension

Importing the package is light: PyTorch is loaded when one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rosa.inspect.draw import draw_adapter, draw_comparison, draw_figure1
    from rosa.inspect.inspection import Inspection, inspect_model
    from rosa.inspect.texts import TextSource, TokenizedTexts, read_texts, tokenize_texts

_HOME = {
    "Inspection": "inspection",
    "TextSource": "texts",
    "TokenizedTexts": "texts",
    "draw_adapter": "draw",
    "draw_comparison": "draw",
    "draw_figure1": "draw",
    "inspect_model": "inspection",
    "read_texts": "texts",
    "tokenize_texts": "texts",
}
__all__ = [
    "Inspection",
    "TextSource",
    "TokenizedTexts",
    "draw_adapter",
    "draw_comparison",
    "draw_figure1",
    "inspect_model",
    "read_texts",
    "tokenize_texts",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rosa.inspect' has no attribute {name!r}")
    return getattr(importlib.import_module(f"rosa.inspect.{_HOME[name]}"), name)
