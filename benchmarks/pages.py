"""Tables in Markdown, and pages that hold some between marks: `<!-- table: NAME -->`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str, made: Callable[[str], str]) -> str:
    """The page with what is `made` of each NAME up to its `<!-- /table -->`."""

    def replace(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{made(match[1])}\n<!-- /table -->"

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- /table -->", replace, page, flags=re.DOTALL)
