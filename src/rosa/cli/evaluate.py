"""`rosa evaluate MODEL_OR_ADAPTER --tasks NAMES --forgetting`: score a model or an adapter."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import LOADING, Parser, add_loading_options, loading_options
from rosa.common.files import check_writable
from rosa.errors import RosaError
from rosa.evaluate.answer_filters import PUBLISHED
from rosa.evaluate.options import EvaluationOptions
from rosa.models.loading import (
    adapter_base,
    check_model_files,
    default_folder,
    find_adapter_config,
    load,
)

if TYPE_CHECKING:
    from rich.console import Console

    from rosa.evaluate.results import Results

LM_EVAL = ("tasks", "out", "task_dir", "batch_size", "limit", "num_fewshot", "prompt", *LOADING)


def build_parser() -> Parser:
    """The options of `rosa evaluate`."""
    parser = Parser(
        prog="rosa evaluate",
        description="Score a model or an adapter on benchmarks. Rerun the same command to resume.",
    )
    what = "hub id or folder of a model or adapter, or 'rosa-tiny'"
    parser.add_argument("model", help=f"{what}; with --rescore, a finished evaluation's folder")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="NAME",
        help="tasks, groups (commonsense, arithmetic, toy, all) or task YAML files",
    )
    parser.add_argument(
        "--out",
        help="results folder; default: evaluation/ inside an adapter's folder, else "
        "runs/evaluate-MODEL, with -strict added for that protocol",
    )
    parser.add_argument(
        "--base_results",
        metavar="FOLDER",
        help="results of an adapter's base model, shown beside the adapter's; default: those of "
        "`rosa evaluate BASE`, if there are any",
    )
    parser.add_class_arguments(EvaluationOptions, skip={"forgetting"})
    parser.add_argument(
        "--forgetting",
        nargs="?",
        const="auto",
        metavar="TEXT",
        help="measure an adapter's loss on plain text after fine-tuning minus before: a file, "
        "'wikitext' (the hub) or 'rosa-tiny'; default: the one that fits the base model",
    )
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="read the stored answers of an evaluation by another protocol, without the model",
    )
    parser.add_argument(
        "--harness",
        type=Literal["lm-eval"] | None,
        help="run the tasks of that harness instead (extra 'lm-eval')",
    )
    parser.add_argument("--task_dir", metavar="DIR", help="folder with your own lm-eval task YAMLs")
    add_loading_options(parser)
    return parser


def run(args: Any) -> None:
    """Score with our tasks, with lm-eval's, or stored answers; print the table."""
    from rich.console import Console

    from rosa.compare.base_model import check_base_results
    from rosa.evaluate.rescore import rescore
    from rosa.evaluate.run import run_evaluation

    console = Console(markup=False, highlight=False, soft_wrap=True)
    if args.harness:
        return evaluate_with_lm_eval(args, console)
    tasks = task_names(args)
    if args.rescore:
        reject_unused(args, "--rescore", ("rescore", "protocol", "tasks", "out"))
        source = Path(args.model)
        out = Path(args.out or source.with_name(f"{source.name}-{args.protocol}"))
        return print_results(rescore(source, args.protocol, out, tasks), out, console)
    if args.task_dir is not None:
        raise RosaError("--task_dir is for lm-eval's tasks; add --harness lm-eval")
    options = EvaluationOptions(
        **{f.name: getattr(args, f.name) for f in fields(EvaluationOptions)}
    )
    out = Path(args.out or results_folder(args.model, options))
    given = args.base_results
    if given is not None:
        check_base_results(given, base_of(args.model))
    try:
        results = run_evaluation(
            args.model,
            tasks,
            options,
            out=out,
            load_options=loading_options(args),
            log=console.print,
            progress=True,
        )
    except KeyboardInterrupt:
        console.print("stopped; answers so far are kept, rerun the same command to resume")
        raise
    if results is not None:
        print_results(results, out, console)
        print_beside_base(given, out, options, console)


def results_folder(model: str, options: EvaluationOptions) -> str:
    """Where the results of `model` go without `--out`."""
    suffix = "" if options.protocol == PUBLISHED else f"-{options.protocol}"
    return f"{default_folder(model, 'evaluation', 'evaluate')}{suffix}"


def base_of(model: str) -> str:
    """The base model of an adapter; RosaError for a base model."""
    config_file = find_adapter_config(model)
    if config_file is None:
        raise RosaError(f"--base_results is for adapters, and '{model}' is a base model")
    return adapter_base(model, config_file)


def print_beside_base(
    given: str | None, out: Path, options: EvaluationOptions, console: Console
) -> None:
    """The table of base model and adapter, if the base has results where they go by default.

    Raises RosaError if those `given` cannot be compared; of the default ones it prints the reason.
    """
    from rosa.common.tables.render import print_table
    from rosa.compare.base_model import base_table
    from rosa.evaluate.folder import EvaluationFolder

    run = EvaluationFolder(out).read_json("run.json")
    base = Path(given or results_folder(run["model"], options))
    if not run.get("adapter") or not (base / "results.json").is_file():
        return
    try:
        table = base_table(base, out)
    except RosaError as error:
        if given is not None:
            raise
        console.print(f"no comparison with the base model: {error}")
    else:
        print_table(table, console)
        console.print(f"scores of the base model are from {base}")


def task_names(args: Any) -> list[str]:
    """`--tasks a,b c` as three names."""
    return [name for word in args.tasks for name in word.split(",") if name]


def print_results(results: Results, out: Path, console: Console) -> None:
    """The table on the terminal, and where the files are."""
    from rosa.common.tables.render import print_table

    print_table(results.table(), console)
    console.print(f"results are in {out}/results.md and results.json")


def evaluate_with_lm_eval(args: Any, console: Console) -> None:
    """Score with lm-evaluation-harness; write and print its results."""
    from rosa.common.tables.render import print_table
    from rosa.evaluate import lm_eval
    from rosa.models.identity import identity

    reject_unused(args, "--harness lm-eval", ("harness", *LM_EVAL))
    if not args.tasks:
        raise RosaError("--harness lm-eval needs --tasks with names of its tasks (arc_easy, ...)")
    if args.prompt not in (None, "chat"):
        raise RosaError("--harness lm-eval has its own prompts; only --prompt chat can be used")
    check_model_files(args.model)
    out = Path(args.out or default_folder(args.model, "lm-eval", "lm-eval"))
    check_writable(out)
    tasks = lm_eval.find_tasks(task_names(args), args.task_dir)
    loaded = load(args.model, **loading_options(args))
    results = lm_eval.run_lm_eval(
        loaded,
        tasks,
        batch_size=args.batch_size,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        chat=args.prompt == "chat",
    )
    file = lm_eval.write_lm_eval_results(results, out, identity(loaded))
    print_table(lm_eval.results_table(results), console)
    console.print(f"results are in {file}")


def reject_unused(args: Any, mode: str, used: tuple[str, ...]) -> None:
    """Raises RosaError for an option that `mode` would ignore."""
    defaults = build_parser().get_defaults()
    for name, value in vars(args).items():
        if name not in ("model", *used) and value != defaults.get(name):
            raise RosaError(f"{mode} does not use --{name}; leave it out")
