"""Tables in Markdown, and pages that hold some between marks: `<!-- table: NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, made: Callable[[str], str]) -> str:
    """The page with what is `made` of each NAME up to its `<!-- /table -->`."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{made(match[1])}\n<!-- /table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- /table -->", replace, page, flags=re.DOTALL)


def spread_of(row: Mapping[str, Any]) -> str:
    """A ratio, and in parentheses its quartiles."""
    low, high = row["quartiles"]
    return f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"


def by_place(rows: Sequence[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """The rows of each size, shape and precision, with its name."""
    places: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        width, layers = row["size"].split("x")
        shape = f"{row['batch']} × {row['length']} tokens"
        where = f"{width} wide, {layers} layers, {shape}, {row['dtype']}"
        places.setdefault(where, []).append(row)
    return places.items()
