"""`rosa params MODEL`: what each method trains in a model, and what memory that takes.

No weights are loaded.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rosa.common.tables.model import Table
    from rosa.methods.registry import Method

Printed = tuple["Table", list[dict[str, Any]]]  # for people, for programs
OF_MEMORY = ("batch_size", "max_length", "dtype", "gradient_checkpointing")


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
    _add_memory(parser)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_memory(parser: Parser) -> None:
    parser.add_argument(
        "--memory",
        action="store_true",
        help="estimate the memory of a training step instead: weights, adapter, gradients, "
        "optimizer, activations, logits",
    )
    parser.add_argument(
        "--batch_size", type=int | None, help="with --memory: rows at a time; default: 4"
    )
    parser.add_argument(
        "--max_length", type=int | None, help="with --memory: tokens of a row; default: 1024"
    )
    parser.add_argument(
        "--dtype",
        type=Literal["bfloat16", "float32", "nf4", "int8"] | None,
        help="with --memory: of the base model; nf4 and int8 compute in bfloat16, the default",
    )
    parser.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="with --memory: layers are computed again in the backward pass",
    )


def run(args: Any) -> int:
    """Counts and prints; raises `RosaError` on bad input."""
    _check(args)
    if args.table:
        table, rows = _table_1()
    elif args.match_budget is not None:
        table, rows = _matched(args)
    elif args.memory:
        table, rows = _memory(args)
    else:
        table, rows = _counted(args)
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    elif args.markdown:
        from rosa.common.tables.render import markdown

        sys.stdout.write(markdown(table))
    else:
        from rich.console import Console

        from rosa.common.tables.render import print_table

        print_table(table, Console())
    return 0


def chosen_methods(asked: str) -> list[Method]:
    """What `--methods` means: a group of methods, or names separated by commas."""
    from rosa.methods.registry import GROUPS, load_method, method_names

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
    _check_memory(args)
    if args.r is not None and args.r < 1:
        raise RosaError(f"--r must be at least 1, not {args.r}")
    if args.json and args.markdown:
        raise RosaError("--json and --markdown exclude each other")


def _check_memory(args: Any) -> None:
    if not args.memory:
        for name in OF_MEMORY:
            if getattr(args, name):
                raise RosaError(f"--{name} is of the estimate of memory; add --memory")
    elif args.table or args.match_budget is not None:
        other = "--table" if args.table else "--match-budget"
        raise RosaError(f"--memory and {other} exclude each other")
    for name in ("batch_size", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise RosaError(f"--{name} must be at least 1, not {value}")


def _memory(args: Any) -> Printed:
    from rosa.budget.activations import Batch
    from rosa.budget.memory_table import PRECISIONS, memory_by_method, memory_table
    from rosa.budget.parameters import builtin_name, model_shape

    methods = [(method, _overrides(method, args)) for method in chosen_methods(args.methods)]
    label = builtin_name(args.model) or args.model
    element, quantization = PRECISIONS[args.dtype or "bfloat16"]
    batch = Batch(
        args.batch_size or 4,
        args.max_length or 1024,
        element,
        checkpointing=args.gradient_checkpointing,
    )
    needs = memory_by_method(model_shape(args.model), methods, batch, quantization)
    table = memory_table(label, needs, batch, quantization)
    return table, [{"model": label, **need.to_json()} for need in needs]


def _overrides(method: Method, args: Any) -> dict[str, Any]:
    """What --r and --r_low mean for a method."""
    from rosa.budget.parameters import rank_overrides

    given = rank_overrides(method.name, args.r)
    if method.peft_config == "RosaConfig" and args.r_low is not None:
        given["r_low"] = args.r_low
    return given


def _counted(args: Any) -> Printed:
    from rosa.budget.parameter_tables import Counted, model_table
    from rosa.budget.parameters import builtin_name, count, model_shape

    methods = chosen_methods(args.methods)
    shape = model_shape(args.model)
    label = builtin_name(args.model) or args.model
    # The paper's figures belong to the paper's ranks.
    as_paper = args.r is None and args.r_low is None
    counted = []
    for method in methods:
        paper = method.paper_percent.get(label) if as_paper else None
        counted.append(Counted(label, count(shape, method.name, _overrides(method, args)), paper))
    if all(c.budget.trainable is None for c in counted):
        first = counted[0].budget
        raise RosaError(f"nothing to count in '{label}': {first.title} is {first.note}")
    return model_table(counted), [c.to_json() for c in counted]


def _matched(args: Any) -> Printed:
    from rosa.budget.matching import nearest, wanted_parameters
    from rosa.budget.parameter_tables import match_json, match_table
    from rosa.budget.parameters import builtin_name, model_shape

    methods = chosen_methods(args.methods)
    shape = model_shape(args.model)
    label = builtin_name(args.model) or args.model
    target = wanted_parameters(shape, args.match_budget)
    matches = [(method, nearest(shape, method.name, target)) for method in methods]
    return match_table(label, matches), [match_json(label, match) for _, match in matches]


def _table_1() -> Printed:
    from rosa.budget.parameter_tables import count_table_1, table_1

    counted = count_table_1()
    return table_1(counted), [{**c.to_json(), "differs": c.differs} for c in counted]
