"""`rosa params MODEL`: what each method trains in a model, without loading its weights."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rosa.cli.parser import Parser
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.study.budget import Budget


def build_parser() -> Parser:
    """The options of `rosa params`."""
    parser = Parser(
        prog="rosa params",
        description="Count the trainable parameters of each method in a model. Only its "
        "config.json is read; no weights are downloaded or allocated.",
    )
    parser.add_argument(
        "model",
        type=str,
        help="a built-in name such as Qwen2.5-7B, a folder with a config.json, or a hub id",
    )
    parser.add_argument(
        "--methods",
        type=str,
        default="paper",
        help="names separated by commas; paper: the nine of its Table 1, variants, all",
    )
    parser.add_argument(
        "--r", type=int | None, default=None, help="rank, for the methods that have one"
    )
    parser.add_argument(
        "--r_low", type=float | None, default=None, help="RoSA's share of low-frequency pairs"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def run(args: Any) -> int:
    """Counts and prints; raises `RosaError` on bad input."""
    from rosa.study.budget import builtin_name, count, model_shape, rank_overrides
    from rosa.study.methods import load_method

    methods = [load_method(name) for name in chosen_names(args.methods)]
    if args.r is not None and args.r < 1:
        raise RosaError(f"--r must be at least 1, not {args.r}")
    shape = model_shape(args.model)
    budgets = []
    for method in methods:
        overrides = rank_overrides(method.name, args.r)
        if method.name == "rosa" and args.r_low is not None:
            overrides["r_low"] = args.r_low
        budgets.append(count(shape, method.name, overrides))
    label = builtin_name(args.model) or args.model
    if all(budget.trainable is None for budget in budgets):
        first = budgets[0]
        raise RosaError(f"nothing to count in '{label}': {first.title} is {first.note}")
    # The paper's figures belong to the paper's ranks.
    as_paper = args.r is None and args.r_low is None
    paper = {m.name: m.paper_percent.get(label) for m in methods} if as_paper else {}
    _print_json(label, budgets, paper) if args.json else _print_table(label, budgets, paper)
    return 0


def chosen_names(asked: str) -> list[str]:
    """What `--methods` means: a group of methods, or names separated by commas."""
    from rosa.study.methods import GROUPS, method_names

    groups = {"paper": method_names(), "variants": method_names(["variant"])}
    groups["all"] = method_names(GROUPS)
    return groups.get(asked) or asked.split(",")


def _print_json(label: str, budgets: list[Budget], paper: dict[str, float | None]) -> None:
    rows = [
        {
            "model": label,
            "method": b.method,
            "trainable": b.trainable,
            "total": b.total,
            "percent": b.percent,
            "paper_percent": paper.get(b.method),
            "note": b.note,
        }
        for b in budgets
    ]
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


def _print_table(label: str, budgets: list[Budget], paper: dict[str, float | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Trainable parameters, {label}", title_justify="left")
    table.add_column("method")
    with_paper = any(value is not None for value in paper.values())
    for heading in ["trainable", "all", "%", *(["paper's %"] if with_paper else [])]:
        table.add_column(heading, justify="right")
    notes: list[str] = []
    for b in budgets:
        mark = ""
        if b.note:
            notes.append(b.note)
            mark = f" [{len(notes)}]"
        cells = [_integer(b.trainable), _integer(b.total), _percent(b.percent)]
        if with_paper:
            cells.append(_percent(paper.get(b.method)))
        table.add_row(b.title + mark.replace("[", r"\["), *cells)
    console = Console()
    console.print(table)
    for number, note in enumerate(notes, 1):
        console.print(f"[{number}] {note}", markup=False, highlight=False)


def _integer(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
