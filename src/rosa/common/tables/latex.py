"""A table as LaTeX: needs `\\usepackage{booktabs}` and nothing else."""

from __future__ import annotations

import re
import unicodedata

from rosa.common.tables.model import Column, Row, Table

_SPECIAL = {c: f"\\{c}" for c in "{}&%$#_"}
_SPECIAL |= {c: f"{{{c}}}" for c in "[*"}  # after a row's \\ they would be its argument
_SPECIAL |= {"`": r"\`{}", '"': r"\char34{}", "–": "{--}", "…": r"\dots{}"}
_MATH = "±pm ×times ≥geq ≤leq →to †dagger ‡ddagger"
_SPECIAL |= {word[0]: rf"$\{word[1:]}$" for word in _MATH.split()}
_TEXT = r"\backslash ~asciitilde ^asciicircum <less >greater |bar"
_SPECIAL |= {word[0]: rf"\text{word[1:]}{{}}" for word in _TEXT.split()}
HEADING = 8  # characters of a line of a column's title


def latex(table: Table) -> str:
    """A `table*` with its caption: `\\midrule` between blocks, best bold, second underlined."""
    body: list[str] = []
    for block in table.blocks:
        body += [r"\midrule"] if body else []
        for labels, row in table.labeled(block):
            cells = [_cell(row, i, table) for i in range(table.width)]
            body.append(_line([*map(escape, labels[:-1]), _marked(row.label, row.mark), *cells]))
    head = [*map(escape, table.heads), *map(_heading, table.columns)]
    label = re.sub(r"[^A-Za-z0-9-]+", "-", table.name)
    caption = " ".join(map(escape, [f"{table.title}.", *table.all_notes("Bold", "underlined")]))
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table*}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\begin{{tabular}}{{{'l' * len(table.heads)}{'r' * table.width}}}",
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


def _marked(text: str, mark: str) -> str:
    """Escaped text with a raised mark."""
    return escape(text) + escape(mark).replace("$", "$^", 1)


def _heading(column: Column) -> str:
    """A column's title in narrow lines."""
    *lines, last = column.lines(HEADING)
    stacked = r" \\ ".join([*map(escape, lines), _marked(last, column.mark)])
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{stacked}\end{{tabular}}" if lines else stacked


def _cell(row: Row, i: int, table: Table) -> str:
    cell, column = row.cells[i], table.columns[i]
    text = column.shown(cell.value)
    text = text.replace("-", "$-$") if isinstance(cell.value, float | int) else escape(text)
    text = {"": text, "best": rf"\textbf{{{text}}}", "second": rf"\underline{{{text}}}"}[cell.style]
    if table.any(i, lambda other: other.star):  # the others make room, so that digits align
        text += "$^*$" if cell.star else r"\phantom{$^*$}"
    deviation = column.deviation(cell, r" {\scriptsize$\pm$")
    return text + deviation + "}" * bool(deviation)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
