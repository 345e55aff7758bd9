"""A table, whatever it is printed as."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

RANKING = "among the methods of a model; values that print the same are tied"
DASH = "–"  # in place of a missing number
SEEN = "†"  # test questions that the training data contains
INCOMPLETE = "‡"  # a row with fewer seeds than asked for

Style = Literal["", "best", "second"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading.
        digits: decimals of its numbers.
        mark: of a footnote, after the title.
        signed: a + before positive numbers.
        unit: formats its numbers with their unit (`format_bytes`), in place of `digits`.
    """

    title: str
    digits: int = 1
    mark: str = ""
    signed: bool = False
    unit: Callable[[float], str] | None = None

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
        """A value as the formats for reading print it.

        >>> Column("x").shown(85.94), Column("x").shown(None), Column("x", 1, "", True).shown(2)
        ('85.9', '–', '+2.0')
        """
        if value is None:
            return DASH
        if isinstance(value, str):
            return value
        return self.unit(value) if self.unit else f"{value:{'+' * self.signed}.{self.digits}f}"

    def deviation(self, cell: Cell, sign: str) -> str:
        """The standard deviation of a cell after a `sign`; empty where it has none."""
        return "" if cell.spread is None else f"{sign}{cell.spread:.{self.digits}f}"


@dataclass(frozen=True)
class Cell:
    """A number or a text; `spread` is the standard deviation after ±."""

    value: float | str | None = None
    spread: float | None = None
    style: Style = ""
    star: bool = False


@dataclass(frozen=True)
class Row:
    """A method's numbers, one cell per column.

    Attributes:
        mark: of a footnote, after the label; `note` is its text.
        group: `ours`, `baseline` or `variant`, which HTML shows by a shape and a color.
    """

    label: str
    cells: tuple[Cell, ...]
    mark: str = ""
    note: str = ""
    group: str = ""


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
        head: heading of the labels ("Method").
        notes: sentences below it.
        ranking: what best and second best are among ("the methods of a model"); empty where no
            cell is styled. Each format explains how it shows them.
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
        """The notes, the first of them the legend of the styles, shown as `best` and `second`."""
        styled = any(self.any(i, lambda cell: bool(cell.style)) for i in range(self.width))
        if not (self.ranking and styled):
            return list(self.notes)
        return [f"{best}: best; {second}: second best {self.ranking}.", *self.notes]

    @property
    def width(self) -> int:
        return len(self.columns)

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block.rows]

    @property
    def heads(self) -> list[str]:
        """Headings of the columns of labels."""
        return ["Model", self.head] if self.names_models else [self.head]

    def labeled(self, block: Block) -> Iterator[tuple[list[str], Row]]:
        """Each row of a block with its labels; the block's title in the first row alone."""
        for i, row in enumerate(block.rows):
            model = [block.title * (i == 0)] * self.names_models
            yield [*model, marked(row.label, row.mark)], row

    def any(self, column: int, test: Callable[[Cell], bool]) -> bool:
        """Whether any cell of a column passes the test."""
        return any(test(row.cells[column]) for row in self.rows)


def marked(text: str, mark: str) -> str:
    """A label or title with the mark of its footnote."""
    return f"{text} {mark}" if mark else text


def ranked(rows: Sequence[Row], columns: Sequence[Column], which: Collection[int]) -> list[Row]:
    """The rows with the best and the second best value of the columns `which` styled.

    Values that print the same are tied. A column with a single value, or with nothing but equal
    ones, has no best.
    """
    styled = [list(row.cells) for row in rows]
    for i in which:
        numbers, digits = [row.cells[i].value for row in rows], columns[i].digits
        printed = [round(v, digits) if isinstance(v, (int, float)) else None for v in numbers]
        places = sorted({value for value in printed if value is not None}, reverse=True)
        if len(places) > 1:
            styles: dict[float | None, Style] = {places[0]: "best", places[1]: "second", None: ""}
            for cells, value in zip(styled, printed, strict=True):
                cells[i] = replace(cells[i], style=styles.get(value, ""))
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, styled, strict=True)]
