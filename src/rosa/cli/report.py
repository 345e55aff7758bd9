"""`rosa report STUDY_FOLDER`: one self-contained page with everything a study found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser
from rosa.errors import RosaError


def build_parser() -> Parser:
    """The options of `rosa report`."""
    parser = Parser(
        prog="rosa report",
        description="Write a study's report.html: tables, plots, layer maps and every example, in "
        "one file that needs no network.",
    )
    parser.add_argument("study", help="the folder that `rosa compare` wrote")
    parser.add_argument("--out", help="file to write (default: report.html in the study's folder)")
    parser.add_argument(
        "--max_mb",
        type=float,
        default=64.0,
        help="keep all responses up to so many megabytes of different ones; above, only those of "
        "each method's first seed, and if these are too many as well, none",
    )
    return parser


def run(args: Any) -> int:
    """Reads the study and writes its page; raises `RosaError` on bad input."""
    from rosa.compare.results import StudyResults
    from rosa.report.html import write_report

    if not args.max_mb >= 0:
        raise RosaError(f"--max_mb must be at least 0, not {args.max_mb:g}")
    study = StudyResults.load(args.study)
    out = Path(args.out) if args.out is not None else study.folder / "report.html"
    if out.is_dir():
        raise RosaError(f"--out {out} is a folder; give a file")
    path = write_report(study, out, limit_mb=args.max_mb)
    sys.stdout.write(f"{path}\n")
    return 0
