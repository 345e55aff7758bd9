"""`rosa tables STUDY_FOLDER`: a study's tables, or the paper's, in four formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.common.files import check_writable
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.common.tables.model import Table


def build_parser() -> Parser:
    """The options of `rosa tables`."""
    parser = Parser(
        prog="rosa tables",
        description="Print a study's tables: scores, the paper's beside them, and each method's "
        "difference to the best baseline with its tests. Without a study, --paper prints a table "
        "of the paper.",
    )
    parser.add_argument("study", nargs="?", help="a folder that `rosa compare` wrote")
    parser.add_argument(
        "--format",
        type=Literal["terminal", "markdown", "latex", "csv"] | None,
        default=None,
        help="default: terminal; with --out all four",
    )
    parser.add_argument("--out", help="write the tables into this folder instead")
    parser.add_argument("--paper", help="add a table of the paper: table1, table2, table3, table4")
    parser.add_argument("--baseline", help="compare with this method, not with the best baseline")
    parser.add_argument("--methods", default="", help="these methods only, separated by commas")
    parser.add_argument(
        "--averages", action="store_true", help="micro averages alone, methods by models"
    )
    parser.add_argument("--std", action="store_true", help="standard deviations of every task")
    parser.add_argument(
        "--star",
        type=Literal["t", "examples"],
        default="t",
        help="what gives the star: a t-test over seeds, or McNemar's test over examples",
    )
    parser.add_argument(
        "--holm", action="store_true", help="correct p values for the number of methods"
    )
    return parser


def run(args: Any) -> None:
    """Print or write; raises `RosaError` on bad input."""
    from rosa.common.tables.render import FORMATS
    from rosa.report.tables import paper
    from rosa.report.tables.write import save, write_tables

    if not (args.study or args.paper):
        raise RosaError("name a study's folder, or a table of the paper with --paper table1")
    of_a_study = ("averages", "std", "holm", "baseline", "methods")
    if args.study is None and (args.star != "t" or any(getattr(args, x) for x in of_a_study)):
        named = ", ".join(f"--{name}" for name in of_a_study)
        raise RosaError(f"{named} and --star need a study's folder")
    printed = paper.paper_tables(args.paper) if args.paper else []
    if not args.out:
        _print([*(_tables(args) if args.study else []), *printed], args.format or "terminal")
        return
    formats = [args.format] if args.format else list(FORMATS)
    check_writable(Path(args.out))
    if args.study and args.averages:
        printed = [*_tables(args), *printed]
    files = save(printed, Path(args.out), formats)
    if args.study and not args.averages:
        study, options = _study(args)
        files += write_tables(study, args.out, options, formats)
    sys.stdout.write("".join(f"{file}\n" for file in files))


def _print(tables: list[Table], name: str) -> None:
    """To standard output; where that is a terminal, in bold and as wide as it is."""
    from rosa.common.tables.render import FORMATS, print_table

    _, render = FORMATS[name]
    if name != "terminal" or not sys.stdout.isatty():
        sys.stdout.write("\n".join(map(render, tables)))
        return
    from rich.console import Console

    console = Console()
    for table in tables:
        print_table(table, console)
        console.print()


def _study(args: Any) -> tuple[Any, Any]:
    """The study's results and what to show of them."""
    from rosa.compare.results import StudyResults
    from rosa.report.tables.sections import TableOptions

    options = TableOptions(
        star=args.star,
        holm=args.holm,
        std=args.std,
        baseline=args.baseline,
        methods=tuple(name.strip() for name in args.methods.split(",") if name.strip()),
    )
    return StudyResults.load(args.study), options


def _tables(args: Any) -> list[Table]:
    from rosa.report.tables.build import average_table
    from rosa.report.tables.sections import sections
    from rosa.report.tables.write import tables_of

    found = sections(*_study(args))
    if not found:
        raise RosaError(f"{args.study} has no finished run yet; `rosa compare` goes on with it")
    if args.averages:
        return [average_table(section) for section in found]
    return [table for section in found for table in tables_of(section)]
