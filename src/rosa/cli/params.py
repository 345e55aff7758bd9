"""`rosa params MODEL`: what each method trains in a model, without loading its weights."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rosa.cli.parser import Parser
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.study.methods import Method
    from rosa.study.tables.table import Table

Printed = tuple["Table", list[dict[str, Any]]]  # for people, for programs


def build_parser() -> Parser:
    """The options of `rosa params`."""
    parser = Parser(
        prog="rosa params",
        description="Count the trainable parameters of each method in a model. Only its "
        "config.json is read; no weights are downloaded or allocated.",
    )
    parser.add_argument(
        "model",
        type=str | None,
        nargs="?",
        help="a built-in name such as Qwen2.5-7B, a folder with a config.json, or a hub id",
    )
    parser.add_argument(
        "--methods",
        type=str,
        default="paper",
        help="names separated by commas (the study's, or PEFT's such as ia3); paper: the nine of "
        "its Table 1, variants, all",
    )
    parser.add_argument(
        "--r", type=int | None, default=None, help="rank, for the methods that have one"
    )
    parser.add_argument(
        "--r_low", type=float | None, default=None, help="RoSA's share of low-frequency pairs"
    )
    parser.add_argument(
        "--match-budget",
        type=str | None,
        metavar="N|P%|METHOD",
        help="show for each method the size that trains about as much: a number of parameters, a "
        "share of all such as 0.26%, or as much as another method",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="the paper's Table 1 instead of a model: its 27 percentages beside the counted ones",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(args: Any) -> int:
    """Counts and prints; raises `RosaError` on bad input."""
    _check(args)
    if args.table:
        table, rows = _table_1()
    elif args.match_budget is not None:
        table, rows = _matched(args)
    else:
        table, rows = _counted(args)
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    elif args.markdown:
        from rosa.study.tables.render import markdown

        sys.stdout.write(markdown(table))
    else:
        from rich.console import Console

        from rosa.study.tables.render import print_table

        print_table(table, Console())
    return 0


def chosen_methods(asked: str) -> list[Method]:
    """What `--methods` means: a group of methods, or names separated by commas."""
    from rosa.study.methods import GROUPS, load_method, method_names

    groups = {"paper": method_names(), "variants": method_names(["variant"])}
    groups["all"] = method_names(GROUPS)
    return [load_method(name) for name in groups.get(asked) or asked.split(",")]


def _check(args: Any) -> None:
    if args.table:
        for name in ("model", "r", "r_low", "match_budget"):
            if getattr(args, name) is not None:
                given = "a model" if name == "model" else f"--{name.replace('match_', 'match-')}"
                raise RosaError(f"--table shows the paper's own models and settings; drop {given}")
    elif args.model is None:
        raise RosaError("name a model: rosa params MODEL, or rosa params --table")
    if args.match_budget is not None and (args.r is not None or args.r_low is not None):
        raise RosaError("--match-budget chooses the rank itself; drop --r and --r_low")
    if args.r is not None and args.r < 1:
        raise RosaError(f"--r must be at least 1, not {args.r}")
    if args.json and args.markdown:
        raise RosaError("--json and --markdown exclude each other")


def _counted(args: Any) -> Printed:
    from rosa.study.budget import builtin_name, count, model_shape, rank_overrides
    from rosa.study.budget_tables import Counted, model_table

    methods = chosen_methods(args.methods)
    shape = model_shape(args.model)
    label = builtin_name(args.model) or args.model
    # The paper's figures belong to the paper's ranks.
    as_paper = args.r is None and args.r_low is None
    counted = []
    for method in methods:
        overrides = rank_overrides(method.name, args.r)
        if method.peft_config == "RosaConfig" and args.r_low is not None:
            overrides["r_low"] = args.r_low
        paper = method.paper_percent.get(label) if as_paper else None
        counted.append(Counted(label, count(shape, method.name, overrides), paper))
    if all(c.budget.trainable is None for c in counted):
        first = counted[0].budget
        raise RosaError(f"nothing to count in '{label}': {first.title} is {first.note}")
    return model_table(counted), [c.to_json() for c in counted]


def _matched(args: Any) -> Printed:
    from rosa.study.budget import builtin_name, model_shape
    from rosa.study.budget_tables import match_json, match_table
    from rosa.study.match import nearest, wanted_parameters

    methods = chosen_methods(args.methods)
    shape = model_shape(args.model)
    label = builtin_name(args.model) or args.model
    target = wanted_parameters(shape, args.match_budget)
    matches = [(method, nearest(shape, method.name, target)) for method in methods]
    return match_table(label, matches), [match_json(label, match) for _, match in matches]


def _table_1() -> Printed:
    from rosa.study.budget_tables import count_table_1, table_1

    counted = count_table_1()
    return table_1(counted), [{**c.to_json(), "differs": c.differs} for c in counted]
