"""`rosa params MODEL`: what each method trains in a model, and the memory of a training step."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.errors import RosaError
from rosa.methods.registry import GROUPS, Method, load_method, method_names

if TYPE_CHECKING:
    from rosa.common.tables.model import Table

Output = tuple["Table", list[dict[str, Any]]]  # to print, and as JSON
# Transformers and PEFT import them where they are installed; a count uses none of them.
UNUSED_PACKAGES = ("bitsandbytes", "hqq", "torchao", "torchvision")
MEMORY_OPTIONS = ("batch_size", "max_length", "dtype", "gradient_checkpointing")


def build_parser() -> Parser:
    """The options of `rosa params`."""
    parser = Parser(
        prog="rosa params",
        description="Count the trainable parameters of each method in a model. Only its "
        "config.json is read; no weights are downloaded or allocated.",
    )
    add = parser.add_argument
    add(
        "model",
        type=str | None,
        nargs="?",
        help="a built-in name such as Qwen2.5-7B, a folder with a config.json, or a hub id",
    )
    add(
        "--methods",
        type=str,
        default="paper",
        help="method names separated by commas (PEFT's names such as ia3 too), or paper (the nine "
        "of its Table 1), variants, all",
    )
    add("--r", type=int | None, help="rank, for the methods that have one")
    add("--r_low", type=float | None, help="RoSA's share of low-frequency pairs")
    add(
        "--match_budget",
        type=str | None,
        metavar="N|P%|METHOD",
        help="for each method the rank or block size whose count is nearest to a number of "
        "parameters, a share of all such as 0.26%, or another method's count",
    )
    flag: dict[str, Any] = {"action": "store_true"}
    add("--table", **flag, help="the paper's Table 1, printed and counted, instead of a model")
    add("--memory", **flag, help="estimate the memory of a training step, by what it holds")
    add("--batch_size", type=int | None, help="with --memory: rows of a micro-batch; default: 4")
    add("--max_length", type=int | None, help="with --memory: tokens of a row; default: 1024")
    add(
        "--dtype",
        type=Literal["bfloat16", "float32", "nf4", "int8"] | None,
        help="with --memory: of the base model; nf4 and int8 compute in bfloat16, the default",
    )
    add("--gradient_checkpointing", **flag, help="with --memory: recompute layers in backward")
    add("--markdown", **flag, help="print Markdown")
    add("--json", **flag, help="print JSON")
    return parser


def run(args: Any) -> None:
    """Counts and prints; raises `RosaError` on bad input."""
    _check(args)
    if "transformers" not in sys.modules:  # saves seconds: hqq alone imports PyTorch's compiler
        sys.modules.update(dict.fromkeys(UNUSED_PACKAGES))  # type: ignore[arg-type]
    if args.table:
        table, rows = _table_1()
    elif args.match_budget is not None:
        table, rows = _matched(args)
    else:
        table, rows = _memory(args) if args.memory else _counted(args)
    if args.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    from rich.console import Console

    from rosa.common.tables.render import markdown, print_table

    if args.markdown:
        sys.stdout.write(markdown(table))
    else:
        print_table(table, Console())


def _check(args: Any) -> None:
    """Raises RosaError for options that exclude each other or are out of range."""
    given = {name for name, value in vars(args).items() if value not in (None, False)}
    if args.table:
        for name in ("model", "r", "r_low", "match_budget"):
            if name in given:
                option = "the model" if name == "model" else f"--{name}"
                raise RosaError(f"--table has the paper's own models and settings; drop {option}")
    elif args.model is None:
        raise RosaError("name a model: rosa params MODEL, or rosa params --table")
    if args.match_budget is not None and given & {"r", "r_low"}:
        raise RosaError("--match_budget chooses the rank; drop --r and --r_low")
    for first, second in (("memory", "table"), ("memory", "match_budget"), ("json", "markdown")):
        if {first, second} <= given:
            raise RosaError(f"--{first} and --{second} exclude each other")
    for name in MEMORY_OPTIONS:
        if name in given and not args.memory:
            raise RosaError(f"--{name} is an option of --memory; add --memory")
    for name in ("r", "batch_size", "max_length"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise RosaError(f"--{name} must be at least 1, not {value}")


def _table_1() -> Output:
    from rosa.budget.budget_tables import count_table_1, table_1

    counts = count_table_1()
    rows = [
        {**count.to_json(model), "differs": count.differs}
        for model, of_model in counts.items()
        for count in of_model
    ]
    return table_1(counts), rows


def _counted(args: Any) -> Output:
    from rosa.budget.budget_tables import parameter_table
    from rosa.budget.parameters import count_methods, model_label

    model, counts = model_label(args.model), count_methods(args.model, _methods(args))
    return parameter_table(model, counts), [count.to_json(model) for count in counts]


def _matched(args: Any) -> Output:
    from rosa.budget.budget_tables import match_table
    from rosa.budget.matching import nearest_match, parse_budget
    from rosa.budget.parameters import load_model_config, model_label

    config, model = load_model_config(args.model), model_label(args.model)
    target = parse_budget(config, args.match_budget)
    matches = [(method, nearest_match(config, method.name, target)) for method, _ in _methods(args)]
    return match_table(model, matches), [match.to_json(model) for _, match in matches]


def _memory(args: Any) -> Output:
    from rosa.budget.activation_memory import MicroBatch
    from rosa.budget.budget_tables import memory_table
    from rosa.budget.memory import PRECISIONS, memory_by_method
    from rosa.budget.parameters import load_model_config, model_label

    config, model = load_model_config(args.model), model_label(args.model)
    dtype_bytes, quantization = PRECISIONS[args.dtype or "bfloat16"]
    batch = MicroBatch(
        args.batch_size or 4,
        args.max_length or 1024,
        dtype_bytes,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    found = memory_by_method(config, _methods(args), batch, quantization)
    table = memory_table(model, found, batch, quantization)
    return table, [method.to_json(model) for method in found]


def _methods(args: Any) -> Iterator[tuple[Method, dict[str, Any]]]:
    """The methods of `--methods` with the arguments that --r and --r_low give them."""
    from rosa.budget.parameters import rank_arguments

    groups = {"paper": method_names(), "variants": method_names(["variant"])}
    groups["all"] = method_names(GROUPS)
    for name in groups.get(args.methods) or args.methods.split(","):
        method = load_method(name)
        arguments = rank_arguments(method.name, args.r)
        if method.peft_config == "RosaConfig" and args.r_low is not None:
            arguments["r_low"] = args.r_low
        yield method, arguments
