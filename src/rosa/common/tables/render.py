"""A table for a terminal, as Markdown and as CSV; `FORMATS` has these and LaTeX by name."""

from __future__ import annotations

import csv as csv_format
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from rosa.common.tables.latex import latex
from rosa.common.tables.model import Cell, Column, Row, Table, marked

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~&])")
STYLES = {"": "", "best": "bold", "second": "underline"}
BRACKETS = {"": (" ", " "), "best": ("[", "]"), "second": ("(", ")")}


def print_table(table: Table, console: Console) -> None:
    """The table on a terminal, in pieces one below the other where it is wider than that.

    Brackets stand for bold and underlined where there are no styles.
    """
    from rich.text import Text

    plain = not console.is_terminal
    console.print(Text(table.title, style="bold"))
    for columns in _pieces(table, plain, console):
        console.print(_rich_table(table, columns, plain))
    signs = ("[ ]", "( )") if plain else ("Bold", "underlined")
    for note in table.all_notes(*signs):
        console.print(Text(note))


def terminal(table: Table) -> str:
    """The table as plain text, as wide as it needs to be."""
    from rich.console import Console

    file = io.StringIO()
    print_table(table, Console(width=10_000, file=file, force_terminal=False, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _pieces(table: Table, plain: bool, console: Console) -> list[list[int]]:
    """The columns, in groups that fit into the width of the console with the labels."""
    unlimited = console.options.update(width=10_000)
    pieces: list[list[int]] = [[]]
    for i in range(table.width):
        longer = _rich_table(table, [*pieces[-1], i], plain)
        if pieces[-1] and console.measure(longer, options=unlimited).maximum > console.width:
            pieces.append([])
        pieces[-1].append(i)
    return pieces


def _rich_table(table: Table, columns: list[int], plain: bool) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in table.heads:
        made.add_column(head, no_wrap=True)
    cells = [[_rich(row, i, table, plain) for row in table.rows] for i in columns]
    for i, texts in zip(columns, cells, strict=True):
        column = table.columns[i]
        title = replace(column, title=marked(column.title, column.mark))
        lines = title.lines(max(map(len, texts), default=0))
        made.add_column(Text("\n".join(lines)), justify="right", no_wrap=True)
    rows = iter(zip(*cells, strict=True))
    for block in table.blocks:
        for labels, row in table.labeled(block):  # as Text, since a str would be read as markup
            made.add_row(*map(Text, labels), *next(rows), end_section=row is block.rows[-1])
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
    return Text.assemble(*parts, (column.deviation(cell, " ±"), "dim"))


def markdown(table: Table) -> str:
    """The table in GitHub's Markdown, title above and notes below."""
    titles = [marked(column.title, column.mark) for column in table.columns]
    lines = [_line(map(escape_markdown, [*table.heads, *titles]))]
    lines.append(_line(["---"] * len(table.heads) + ["---:"] * table.width))
    for block in table.blocks:
        for labels, row in table.labeled(block):
            cells = map(_markdown, row.cells, table.columns)
            lines.append(_line([*map(escape_markdown, labels), *cells]))
    notes = [f"- {escape_markdown(n)}" for n in table.all_notes("Bold", "underlined")]
    return "\n".join([f"**{escape_markdown(table.title)}**", "", *lines, "", *notes]) + "\n"


def _markdown(cell: Cell, column: Column) -> str:
    text = escape_markdown(column.shown(cell.value))
    text = {"": text, "best": f"**{text}**", "second": f"<u>{text}</u>"}[cell.style]
    return text + r"\*" * cell.star + column.deviation(cell, " ± ")


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
    with_spread = [table.any(i, lambda cell: cell.spread is not None) for i in range(table.width)]
    starred = any(table.any(i, lambda cell: cell.star) for i in range(table.width))
    noted = any(row.note for row in table.rows)
    head = ["Model", table.head]
    for column, spread in zip(table.columns, with_spread, strict=True):
        head += [column.title, *([f"{column.title} std"] if spread else [])]
    writer.writerow([*head, *["significant"] * starred, *["note"] * noted])
    for block in table.blocks:
        for row in block.rows:
            values = [block.title, row.label]
            for cell, spread in zip(row.cells, with_spread, strict=True):
                values += [_plain(cell.value), *([_plain(cell.spread)] if spread else [])]
            star = "yes" if any(cell.star for cell in row.cells) else ""
            writer.writerow([*values, *[star] * starred, *[row.note] * noted])
    return file.getvalue()


def _plain(value: float | str | None) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "terminal": (".txt", terminal),
    "markdown": (".md", markdown),
    "latex": (".tex", latex),
    "csv": (".csv", csv),
}
