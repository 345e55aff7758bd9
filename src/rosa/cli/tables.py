"""`rosa tables STUDY_FOLDER`: a study's tables, or the paper's, in four formats."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.common.files import check_writable
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.common.tables.model import Table

STUDY_OPTIONS = ("averages", "std", "holm", "baseline", "methods", "star")


def build_parser() -> Parser:
    """The options of `rosa tables`."""
    parser = Parser(
        prog="rosa tables",
        description="Print a study's tables: scores, with the paper's, and each method's "
        "difference to the best baseline with its tests. Without a study, --paper prints a table "
        "of the paper.",
    )
    parser.add_argument("study", nargs="?", help="a folder that `rosa compare` wrote")
    formats = Literal["terminal", "markdown", "latex", "csv"] | None
    parser.add_argument("--format", type=formats, help="default: terminal; with --out all four")
    parser.add_argument("--out", help="write the tables into this folder instead")
    parser.add_argument("--paper", help="add a table of the paper: table1, table2, table3, table4")
    parser.add_argument("--baseline", help="compare with this method, not with the best baseline")
    parser.add_argument("--methods", help="these methods only, separated by commas")
    only = "micro averages only, methods by models"
    parser.add_argument("--averages", action="store_true", help=only)
    parser.add_argument("--std", action="store_true", help="standard deviations of every task")
    star = "the test of the star: a t-test over seeds (t, the default), or McNemar's over examples"
    parser.add_argument("--star", type=Literal["t", "examples"] | None, help=star)
    correct = "correct p values for the number of methods (Holm)"
    parser.add_argument("--holm", action="store_true", help=correct)
    return parser


def run(args: Any) -> None:
    """Print or write; raises `RosaError` on bad input."""
    from rosa.common.tables.render import FORMATS
    from rosa.compare.results import StudyResults
    from rosa.report.tables import paper
    from rosa.report.tables.build import average_table
    from rosa.report.tables.sections import TableOptions, sections
    from rosa.report.tables.write import save, tables_of, write_tables

    if not (args.study or args.paper):
        raise RosaError("name a study's folder, or a table of the paper with --paper table1")
    if not args.study and any(getattr(args, name) for name in STUDY_OPTIONS):
        raise RosaError(f"{', '.join(f'--{name}' for name in STUDY_OPTIONS)} need a study's folder")
    methods = tuple(filter(None, (name.strip() for name in (args.methods or "").split(","))))
    options = TableOptions(args.star or "t", args.holm, args.std, args.baseline, methods)
    printed = paper.paper_tables(args.paper) if args.paper else []
    study = StudyResults.load(args.study) if args.study else None
    if args.out:
        check_writable(Path(args.out))
    formats = [args.format] if args.format else list(FORMATS)
    files: list[Path] = []
    if args.out and study and not args.averages:
        files = write_tables(study, args.out, options, formats)
    elif study:
        found = sections(study, options)
        if not found:
            raise RosaError(f"{args.study} has no finished run yet; rerun `rosa compare` to resume")
        tables = [[average_table(s)] if args.averages else tables_of(s) for s in found]
        printed = [table for group in tables for table in group] + printed
    if args.out:
        files = save(printed, Path(args.out), formats) + files
        sys.stdout.write("".join(f"{file}\n" for file in files))
    else:
        print_tables(printed, args.format or "terminal")


def print_tables(tables: Iterable[Table], name: str = "terminal") -> None:
    """To standard output; to a terminal in bold and as wide as it is."""
    from rich.console import Console

    from rosa.common.tables.render import FORMATS, print_table

    _, render = FORMATS[name]
    if name != "terminal" or not sys.stdout.isatty():
        sys.stdout.write("\n".join(map(render, tables)))
        return
    console = Console()
    for table in tables:
        print_table(table, console)
        console.print()
