"""The numbers that the paper prints: its Tables 1 to 4 as data."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from rosa.assets import ASSETS


@cache
def paper_data(table: str) -> dict[str, Any]:
    """`table1`, ..., `table4` of paper_tables.json."""
    return json.loads((ASSETS / "paper_tables.json").read_text(encoding="utf-8"))[table]


def paper_percent(method: str) -> dict[str, float]:
    """Trainable parameters of a method in percent as Table 1 prints them, by built-in model."""
    return {
        block["builtin"]: row["percent"]
        for block in paper_data("table1")["models"]
        for row in block["rows"]
        if row["method"] == method
    }
