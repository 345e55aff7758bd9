"""A table, whatever it is printed as."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

RANKING = "among the methods of a model; what prints the same is the same"
DASH = "–"  # stands where there is no number
SEEN = "†"  # test questions that the training data holds
INCOMPLETE = "‡"  # a row with fewer seeds than asked for

Style = Literal["", "best", "second"]


@dataclass(frozen=True)
class Column:
    """A column: its title, the decimals of its numbers, the mark of a footnote, + before gains."""

    title: str
    digits: int = 1
    mark: str = ""
    signed: bool = False

    def lines(self, width: int) -> list[str]:
        """The title in lines as narrow as `width`, or as its longest word.

        >>> Column("# Param (%)").lines(5)
        ['# Param', '(%)']
        """
        title = self.title.replace("# ", "#\N{NO-BREAK SPACE}")
        longest = max(map(len, title.split(" ")))
        lines = textwrap.wrap(title, max(width, longest), break_on_hyphens=False)
        return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]

    def shown(self, value: float | str | None) -> str:
        """A value as all formats for people print it.

        >>> Column("x").shown(85.94), Column("x").shown(None), Column("x", 1, "", True).shown(2)
        ('85.9', '–', '+2.0')
        """
        if value is None:
            return DASH
        sign = "+" if self.signed else ""
        return value if isinstance(value, str) else f"{value:{sign}.{self.digits}f}"


@dataclass(frozen=True)
class Cell:
    """A number or a text; `spread` is the standard deviation that stands after ±."""

    value: float | str | None = None
    spread: float | None = None
    style: Style = ""
    star: bool = False


@dataclass(frozen=True)
class Row:
    """A method's numbers; `note` is what the mark of its label stands for."""

    label: str
    cells: tuple[Cell, ...]
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Rows that are compared with one another: those of one model."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table with all that is printed around it.

    Attributes:
        name: stem of its files.
        title: one line above it.
        head: what its labels are ("Method").
        columns, blocks: its body; every row has one cell per column.
        ranking: what best and second best are among ("the methods of a model"); empty where no
            cell is styled. Each format says how it shows them.
        notes: sentences below it, in the order they are read.
        names_models: whether a first column names the block of each row.
    """

    name: str
    title: str
    head: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    ranking: str = ""
    names_models: bool = False

    def all_notes(self, best: str, second: str) -> list[str]:
        """The notes, those styles explained that the format shows as `best` and `second`."""
        styled = any(self.any(i, lambda cell: bool(cell.style)) for i in range(self.width))
        if not (self.ranking and styled):
            return list(self.notes)
        return [f"{best}: best; {second}: second best {self.ranking}.", *self.notes]

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def widths(self) -> list[int]:
        """Characters of the longest cell of each column, spread and star included."""
        return [
            max(
                (
                    len(column.shown(cell.value))
                    + cell.star
                    + (0 if cell.spread is None else 2 + len(column.shown(cell.spread)))
                    for cell in (row.cells[i] for block in self.blocks for row in block.rows)
                ),
                default=0,
            )
            for i, column in enumerate(self.columns)
        ]

    def any(self, column: int, test: Callable[[Cell], bool]) -> bool:
        """Whether any cell of a column passes."""
        return any(test(row.cells[column]) for block in self.blocks for row in block.rows)


def ranked(rows: Sequence[Row], columns: Sequence[Column], which: Collection[int]) -> list[Row]:
    """The rows with the best and the second best value of the columns `which` styled.

    Values that print the same are the same: all that print as the best are best, and all that
    print as the next lower value are second. A column with a single value, or with nothing but
    equal ones, has no winner.
    """
    styled = list(rows)
    for i in which:
        digits = columns[i].digits
        numbers = [row.cells[i].value for row in rows]
        printed = [round(v, digits) if isinstance(v, (int, float)) else None for v in numbers]
        places = sorted({value for value in printed if value is not None}, reverse=True)
        if len(places) < 2:
            continue
        styles: dict[float | None, Style] = {places[0]: "best", places[1]: "second", None: ""}
        for at, value in enumerate(printed):
            cells = list(styled[at].cells)
            cells[i] = replace(cells[i], style=styles.get(value, ""))
            styled[at] = replace(styled[at], cells=tuple(cells))
    return styled
