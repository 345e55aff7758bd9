"""`rosa plot RUN`: draw which layers a run chose, how often, and their scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rosa.cli.parser import Parser
from rosa.common.files import check_writable
from rosa.errors import RosaError

FORMATS = (".png", ".svg", ".pdf")


def build_parser() -> Parser:
    """The options of `rosa plot`."""
    parser = Parser(
        prog="rosa plot",
        description="Draw a run's layer selection: which layers were chosen when, how often each "
        "was, and how their scores are spread.",
    )
    parser.add_argument("run", help="the folder of a run, or a dls_history.jsonl")
    parser.add_argument(
        "--out", help=f"file to write ({', '.join(FORMATS)}); default: layers.png in the run"
    )
    return parser


def run(args: Any) -> None:
    """Reads the history, writes the plot and prints its summary."""
    from rosa.train.plots import draw_layers, read_history, summarize

    place = Path(args.run)
    records = read_history(place)
    folder = place if place.is_dir() else place.parent
    out = folder / "layers.png" if args.out is None else Path(args.out)
    if out.suffix not in FORMATS or out.is_dir():
        raise RosaError(f"--out {out}: give a file that ends in {', '.join(FORMATS)}")
    check_writable(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_layers(records, out, str(args.run))
    sys.stdout.write(f"{summarize(records)}\n{out}\n")
