"""One table, four forms: every form shows the same numbers and brings any label through whole."""

from __future__ import annotations

import csv
import io
import itertools
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from rosa.common.tables.latex import escape, latex
from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.common.tables.render import FORMATS, markdown, print_table, terminal
from rosa.common.tables.render import csv as to_csv
from rosa.report.tables import paper

NASTY = [
    *["a|b", "50 % & more", "x_y^z~w", "#1 $5 {q} [r]", "<b>bold</b> <!-- x -->", "*star* **two**"],
    *[
        "back\\slash\\",
        "\\|",
        "`code`",
        "[link](http://x)",
        "-- --- ?`!`",
        'say "hi"',
        "&amp; &lt;",
    ],
    *["± † ‡ – … × ≥ ≤ → α λ σ", "[first", "* item", "=1+1", "a,b\nc;d", "~~gone~~", "'it''s'"],
]
labels = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20
)
numbers = st.none() | st.floats(-100, 100).map(lambda v: round(v, 3) + 0.0)
harmless = st.text("abcXYZ 09._-", min_size=1, max_size=8).filter(str.strip)
few = settings(max_examples=20, deadline=None)
some = settings(max_examples=50, deadline=None)
cells = st.builds(
    Cell,
    numbers,
    spread=st.none() | st.floats(0, 9),
    style=st.sampled_from(["", "best", "second"]),
    star=st.booleans(),
)


@st.composite
def tables(draw, label=harmless) -> Table:
    columns = draw(st.lists(st.builds(Column, label, st.integers(0, 3)), min_size=1, max_size=4))
    row = st.builds(Row, label, st.tuples(*[cells] * len(columns)))
    block = st.builds(Block, label, st.lists(row, min_size=1, max_size=3).map(tuple))
    blocks = draw(st.lists(block, min_size=1, max_size=3))
    notes = tuple(draw(st.lists(label, max_size=2)))
    models = draw(st.booleans())
    return Table("t", draw(label), "Method", tuple(columns), tuple(blocks), notes, "", models)


def labeled(label: str) -> Table:
    """A table in which `label` stands wherever a person's words may."""
    rows = (Row(label, (Cell(1.0, style="best"), Cell(label))), Row("other", (Cell(), Cell(2.0))))
    columns = (Column(label, mark="†"), Column("x"))
    blocks = (Block(label, rows), Block("b", rows))
    return Table("t", label, "Method", columns, blocks, (label,), "", True)


def flat(text: str) -> str:
    return " ".join(text.split())


# Markdown, read back by another's parser.


def parsed_markdown(text: str) -> list[list[str]]:
    """The table's cells as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    inside = itertools.takewhile(lambda token: token.type != "table_close", tokens)
    for token in inside:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            kinds = {"text", "code_inline", "text_special"}
            seen = "".join(t.content for t in token.children or () if t.type in kinds)
            rows[-1].append(seen)
    return rows


@pytest.mark.parametrize("label", NASTY)
def test_markdown_shows_a_label_as_it_is(label):
    rows = parsed_markdown(markdown(labeled(label)))
    assert rows[0][2] == f"{flat(label)} †"
    assert rows[1][:2] == [flat(label), flat(label)]
    assert rows[1][3] == flat(label)


@some
@given(labels)
def test_markdown_shows_any_label_as_it_is(label):
    rows = parsed_markdown(markdown(labeled(label)))
    assert [len(row) for row in rows] == [4] * 5
    assert flat(rows[1][1]) == flat(label)


@few
@given(tables())
def test_markdown_holds_every_number_once(table):
    rows = parsed_markdown(markdown(table))[1:]
    skip = 2 if table.names_models else 1
    expected = [row for block in table.blocks for row in block.rows]
    for cells_, row in zip(rows, expected, strict=True):
        for text, cell, column in zip(cells_[skip:], row.cells, table.columns, strict=True):
            spread = "" if cell.spread is None else f" ± {cell.spread:.{column.digits}f}"
            assert text == column.shown(cell.value) + "*" * cell.star + spread


# CSV, read back by Python's parser.


@some
@given(labels.filter(lambda label: "\r" not in label))
def test_csv_brings_any_label_back(label):
    head, first, *_ = csv.reader(io.StringIO(to_csv(labeled(label)), newline=""))
    assert head == ["Model", "Method", label, "x"]
    assert first == [label, label, "1", label]


@few
@given(tables())
def test_csv_brings_every_number_back(table):
    head, *rows = csv.reader(io.StringIO(to_csv(table), newline=""))
    assert all(len(row) == len(head) for row in rows)
    expected = [(block.title, row) for block in table.blocks for row in block.rows]
    for values, (model, row) in zip(rows, expected, strict=True):
        assert values[:2] == [model, row.label]
        rest = iter(values[2:])
        for i, cell in enumerate(row.cells):
            assert same(next(rest), cell.value)
            if table.any(i, lambda other: other.spread is not None):
                assert same(next(rest), cell.spread)
        if head[-1] == "significant":
            assert (next(rest) == "yes") == any(cell.star for cell in row.cells)


def same(text: str, value: float | None) -> bool:
    return text == "" if value is None else float(text) == pytest.approx(value, rel=1e-5)


# LaTeX.


def unescaped(text: str) -> str:
    """What LaTeX prints for escaped text: an inverse that was written apart from `escape`."""
    words = {
        r"\textbackslash{}": "\\",
        r"\textasciitilde{}": "~",
        r"\textasciicircum{}": "^",
        r"\textless{}": "<",
        r"\textgreater{}": ">",
        r"\textbar{}": "|",
        r"\char34{}": '"',
        r"\`{}": "`",
        r"\dots{}": "…",
        "{--}": "–",
        "{[}": "[",
        "{*}": "*",
        "-{}": "-",
        r"$\dagger$": "†",
        r"$\ddagger$": "‡",
        r"$\pm$": "±",
        r"$\times$": "×",
        r"$\geq$": "≥",
        r"$\leq$": "≤",
        r"$\to$": "→",
    }
    pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.sub(rf"({pattern})|\\([{{}}&%$#_])", lambda m: words.get(m[0], m[2]), text)


@some
@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])) | st.sampled_from(NASTY))
def test_latex_escapes_so_that_nothing_is_lost(label):
    label = re.sub("[αλσ]", "", label)
    assert unescaped(escape(label)) == flat(label)


def structure(text: str) -> tuple[int, list[int]]:
    """Depth of braces at the end, and columns per row of the tabular; escapes left out."""
    bare = re.sub(r"\\[\\{}&%$#_]", lambda m: "\n" if m[0] == r"\\" else "", text)
    nested = re.sub(r"\\begin\{tabular\}\[b\].*?\\end\{tabular\}", "", bare, flags=re.DOTALL)
    body = nested.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [line for line in body.split("\n") if "&" in line]
    return bare.count("{") - bare.count("}"), [row.count("&") + 1 for row in rows]


@few
@given(tables(label=labels))
def test_latex_is_balanced_and_rectangular(table):
    text = latex(table)
    depth, widths = structure(text)
    assert depth == 0
    width = table.width + (2 if table.names_models else 1)
    assert widths == [width] * (1 + sum(len(block.rows) for block in table.blocks))
    assert text.count(r"\midrule") == len(table.blocks)  # one under the head, one between blocks
    assert text.count("$") % 2 == text.count(r"\$") % 2


@few
@given(tables())
def test_latex_shows_every_number(table):
    text = latex(table)
    for block in table.blocks:
        for row in block.rows:
            for cell, column in zip(row.cells, table.columns, strict=True):
                if cell.value is not None:
                    assert column.shown(cell.value).replace("-", "$-$") in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    """The paper's tables and one with every character that means something to LaTeX."""
    every = [*(t for name in paper.NAMES for t in paper.paper_tables(name)), *map(labeled, NASTY)]
    document = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}"]
    for table in every:
        document += [latex(table), r"\clearpage"]
    (tmp_path / "all.tex").write_text("\n".join([*document, r"\end{document}"]), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert f"({len(every)} pages" in done.stdout.replace("\n", "")


# The terminal.


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_a_narrow_terminal_loses_nothing(width):
    table = paper.paper_tables("table1")[0]
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    print_table(table, console)
    text = console.file.getvalue()
    assert "…" not in text
    for block in table.blocks:
        for row in block.rows:
            assert row.label in text
    found = re.findall(r"\d+\.\d+", text.split("Bold:")[0])
    shown = [
        column.shown(cell.value)
        for block in table.blocks
        for row in block.rows
        for cell, column in zip(row.cells, table.columns, strict=True)
    ]
    digits = [n for n in found if n not in {"2.5", "3.1"} or n in shown]  # Qwen 2.5, Llama 3.1
    assert sorted(digits) == sorted(shown)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("label", ["LoRA [r=4]", "[/] x", "[bold]b[/bold]", ":smile: [link=x]y"])
def test_the_terminal_shows_a_label_as_it_is(label):
    """Brackets are no markup: they would vanish, or stop the study that writes its tables."""
    in_a_terminal = Console(width=200, file=io.StringIO(), force_terminal=True, color_system=None)
    print_table(labeled(label), in_a_terminal)
    for text in (terminal(labeled(label)), in_a_terminal.file.getvalue()):
        rows = [line for line in text.splitlines() if " 1.0 " in line or "[1.0]" in line]
        assert [row.count(label) for row in rows] == [3, 2]  # model, method and cell; no model


def test_plain_text_says_best_and_second_without_styles():
    text = terminal(paper.paper_tables("table2")[0])
    assert "[53.7]" in text
    assert "(53.5)" in text
    assert " 53.1 " in text
    assert "[ ]: best; ( ): second best" in text
    assert "Bold" not in text


@few
@given(tables(label=labels))
def test_every_format_takes_any_label(table):
    for _, render in FORMATS.values():
        assert render(table).endswith("\n")
