"""A table as LaTeX: needs `\\usepackage{booktabs}` and nothing else."""

from __future__ import annotations

import re
import unicodedata

from rosa.common.tables.model import Column, Row, Table

MODEL = "Model"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a row that begins with [ or * would be an argument of the \\ before it
    "*": "{*}",
    "`": r"\`{}",
    '"': r"\char34{}",
    "–": "{--}",
    "…": r"\dots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "→": r"$\to$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
}
_MARK = {"": "", "†": r"$^\dagger$", "‡": r"$^\ddagger$"}


def latex(table: Table) -> str:
    """A `table*` with its caption, blocks parted by `\\midrule`, best bold, second underlined."""
    labels = 2 if table.names_models else 1
    head = [*([MODEL] if table.names_models else []), escape(table.head)]
    head += [
        _heading(column, width) for column, width in zip(table.columns, table.widths, strict=True)
    ]
    body: list[str] = []
    for number, block in enumerate(table.blocks):
        body += [r"\midrule"] if number else []
        for at, row in enumerate(block.rows):
            first = [escape(block.title) if at == 0 else ""] if table.names_models else []
            cells = [_cell(row, i, table) for i in range(table.width)]
            body.append(_line([*first, escape(row.label) + _mark(row.mark), *cells]))
    notes = table.all_notes("Bold", "underlined")
    label = re.sub(r"[^A-Za-z0-9-]+", "-", table.name)
    caption = " ".join([f"{escape(table.title)}.", *map(escape, notes)])
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{{'l' * labels}{'r' * table.width}}}",
            r"\toprule",
            _line(head),
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            r"\end{table*}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line.

    >>> escape("50 % of R&D_x")
    '50 \\\\% of R\\\\&D\\\\_x'
    """
    text = " ".join(text.split())
    return "".join(_character(c, after) for c, after in zip(text, (text + " ")[1:], strict=True))


def _character(c: str, after: str) -> str:
    if c == after == "-":  # or two would become one dash
        return "-{}"
    if c in _SPECIAL:
        return _SPECIAL[c]
    name = unicodedata.name(c, "")
    if name.startswith("GREEK SMALL LETTER ") and len(name.split()) == 4 and c not in "ος":
        return f"$\\{name.split()[-1].lower().replace('lamda', 'lambda')}$"
    return c


def _mark(mark: str) -> str:
    return _MARK.get(mark, escape(mark))


def _heading(column: Column, width: int) -> str:
    """A column's title, in as many lines as its numbers are too narrow for."""
    lines = [escape(line) for line in column.lines(width)]
    lines[-1] += _mark(column.mark)
    if len(lines) == 1:
        return lines[0]
    stacked = r" \\ ".join(lines)
    return r"\begin{tabular}[b]{@{}r@{}}" + stacked + r"\end{tabular}"


def _cell(row: Row, i: int, table: Table) -> str:
    cell, column = row.cells[i], table.columns[i]
    text = column.shown(cell.value)
    text = text.replace("-", "$-$") if isinstance(cell.value, float | int) else escape(text)
    text = {"": text, "best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}[cell.style]
    if table.any(i, lambda other: other.star):  # the others make room, so that digits align
        text += "$^*$" if cell.star else r"\phantom{$^*$}"
    if cell.spread is not None:
        text += rf" {{\scriptsize$\pm${cell.spread:.{column.digits}f}}}"
    return text


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
