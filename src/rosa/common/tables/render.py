"""One table in four forms: for a terminal, as Markdown, as LaTeX (latex.py) and as CSV."""

from __future__ import annotations

import csv as csv_format
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from rosa.common.tables.latex import latex
from rosa.common.tables.model import Cell, Column, Row, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

MODEL = "Model"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&])")
STYLES = {"": "", "best": "bold", "second": "underline"}
BRACKETS = {"": (" ", " "), "best": ("[", "]"), "second": ("(", ")")}
GAP = 2  # characters between two columns on a terminal


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal, in pieces one below the other where it is wider than that.

    Brackets stand for bold and underlined where there are no styles.
    """
    from rich.text import Text

    plain = not console.is_terminal
    console.print(Text(table.title, style="bold"))
    for piece in _pieces(table, plain, console.width):
        console.print(piece)
    signs = ("[ ]", "( )") if plain else ("Bold", "underlined")
    for note in table.all_notes(*signs):
        console.print(Text(note))


def terminal(table: Table) -> str:
    """The table as plain text, as wide as it needs to be."""
    from rich.console import Console

    file = io.StringIO()
    print_table(table, Console(width=10_000, file=file, force_terminal=False, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _pieces(table: Table, plain: bool, width: int) -> list[RichTable]:
    """Tables of as many columns as fit into `width`, each with the labels."""
    labels = [_with_mark(row.label, row.mark) for block in table.blocks for row in block.rows]
    taken = 2 + max(map(len, [table.head, *labels]))
    if table.names_models:
        taken += GAP + max(len(block.title) for block in table.blocks)
    rows = [row for block in table.blocks for row in block.rows]
    cells = [[_rich(row, i, table, plain) for row in rows] for i in range(table.width)]
    pieces: list[list[tuple[str, list[Text]]]] = [[]]
    left = width - taken
    for column, texts in zip(table.columns, cells, strict=True):
        title = replace(column, title=_with_mark(column.title, column.mark))
        lines = title.lines(max(map(len, texts), default=0))
        wide = max(*map(len, lines), *map(len, texts))
        if pieces[-1] and wide + GAP > left:
            pieces.append([])
            left = width - taken
        pieces[-1].append(("\n".join(lines), texts))
        left -= wide + GAP
    return [_rich_table(table, piece) for piece in pieces]


def _rich_table(table: Table, columns: list[tuple[str, list[Text]]]) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    if table.names_models:
        made.add_column(MODEL, no_wrap=True)
    made.add_column(table.head, no_wrap=True)
    for title, _ in columns:
        made.add_column(Text(title), justify="right", no_wrap=True)
    at = 0
    for block in table.blocks:
        for i, row in enumerate(block.rows):
            first = [Text(block.title if i == 0 else "")] if table.names_models else []
            texts = [cells[at] for _, cells in columns]
            last = i == len(block.rows) - 1
            label = Text(_with_mark(row.label, row.mark))  # a str would be read as markup
            made.add_row(*first, label, *texts, end_section=last)
            at += 1
    return made


def _rich(row: Row, i: int, table: Table, plain: bool) -> Text:
    """A cell, with room for what only other cells of its column have, so that digits align."""
    from rich.text import Text

    cell, column = row.cells[i], table.columns[i]
    parts: list[tuple[str, str]] = [(column.shown(cell.value), "" if plain else STYLES[cell.style])]
    if plain and table.any(i, lambda other: bool(other.style)):
        left, right = BRACKETS[cell.style]
        parts = [(left, ""), *parts, (right, "")]
    if table.any(i, lambda other: other.star):
        parts.append(("*" if cell.star else " ", ""))
    if cell.spread is not None:
        parts.append((f" ±{cell.spread:.{column.digits}f}", "dim"))
    return Text.assemble(*parts)


def _with_mark(label: str, mark: str) -> str:
    return f"{label} {mark}" if mark else label


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, title above and notes below."""
    models = [MODEL] if table.names_models else []
    head = [*models, table.head, *(_with_mark(c.title, c.mark) for c in table.columns)]
    rule = ["---"] * (len(models) + 1) + ["---:"] * table.width
    lines = [_line(map(escape_markdown, head)), _line(rule)]
    for block in table.blocks:
        for i, row in enumerate(block.rows):
            first = [escape_markdown(block.title) if i == 0 else ""] if models else []
            cells = [
                _markdown(c, column) for c, column in zip(row.cells, table.columns, strict=True)
            ]
            lines.append(_line([*first, escape_markdown(_with_mark(row.label, row.mark)), *cells]))
    notes = [f"- {escape_markdown(n)}" for n in table.all_notes("Bold", "underlined")]
    return "\n".join([f"**{escape_markdown(table.title)}**", "", *lines, "", *notes]) + "\n"


def _markdown(cell: Cell, column: Column) -> str:
    text = escape_markdown(column.shown(cell.value))
    text = {"": text, "best": f"**{text}**", "second": f"<u>{text}</u>"}[cell.style]
    if cell.star:
        text += r"\*"
    if cell.spread is not None:
        text += f" ± {cell.spread:.{column.digits}f}"
    return text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    >>> escape_markdown("a|b_*")
    'a\\\\|b\\\\_\\\\*'
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def csv(table: Table) -> str:
    """The numbers for other programs: unrounded, spreads and stars in columns of their own."""
    file = io.StringIO()
    writer = csv_format.writer(file, lineterminator="\n")
    rows = [row for block in table.blocks for row in block.rows]
    starred = any(table.any(i, lambda cell: cell.star) for i in range(table.width))
    noted = any(row.note for row in rows)
    head = [MODEL, table.head]
    for i, column in enumerate(table.columns):
        spread = table.any(i, lambda cell: cell.spread is not None)
        head += [column.title, *([f"{column.title} std"] if spread else [])]
    head += [*(["significant"] if starred else []), *(["note"] if noted else [])]
    writer.writerow(head)
    for block in table.blocks:
        for row in block.rows:
            star = ["yes" if any(c.star for c in row.cells) else ""] if starred else []
            note = [row.note] if noted else []
            writer.writerow([block.title, row.label, *_values(row, table), *star, *note])
    return file.getvalue()


def _values(row: Row, table: Table) -> list[str]:
    values = []
    for i, cell in enumerate(row.cells):
        values.append(_plain(cell.value))
        spread = table.any(i, lambda other: other.spread is not None)
        values += [_plain(cell.spread)] if spread else []
    return values


def _plain(value: float | str | None) -> str:
    if value is None:
        return ""
    return (
        value
        if isinstance(value, str)
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "terminal": (".txt", terminal),
    "markdown": (".md", markdown),
    "latex": (".tex", latex),
    "csv": (".csv", csv),
}
