"""`rosa reproduce TARGET`: a table or figure of the paper, at its scale or on the toy model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from rich.console import Console

from rosa.budget.time import CPU_CORE, H100, Device
from rosa.cli import inspect
from rosa.cli.compare import add_executor_options, run_grid
from rosa.cli.parser import Parser
from rosa.cli.recipe_parser import resolve_recipe
from rosa.cli.tables import print_tables
from rosa.common.formatting import format_bytes
from rosa.errors import RosaError
from rosa.reproduce.dry_run import base_size, dry_run
from rosa.reproduce.output import draw_target_figures, write_target_tables
from rosa.reproduce.targets import Target, check_training_data, load_target, target_names


def build_parser() -> Parser:
    """The options of `rosa reproduce`."""
    parser = Parser(
        prog="rosa reproduce",
        description="Run everything behind a table or figure of the paper, then write it next "
        "to the paper's own numbers. Rerun to resume.",
    )
    parser.add_argument("target", help=", ".join(target_names()))
    parser.add_argument(
        "--scale",
        type=Literal["full", "tiny"],
        default="full",
        help="full: the paper's setting; tiny: the embedded toy model, minutes on a CPU",
    )
    parser.add_argument("--model", help="this model alone: one of the target's, or any other")
    parser.add_argument(
        "--data",
        help="the training file, a folder with it (a clone of LLM-Adapters) or a hub data set; "
        "test sets are taken from a folder too. For figure1: the text to run on",
    )
    parser.add_argument(
        "--any_data", action="store_true", help="accept other training data, as a stand-in"
    )
    parser.add_argument(
        "--test_data",
        help="folder with <name>/test.json; default: looked for in --data, then on the hub",
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="only these tasks or groups")
    parser.add_argument("--output_dir", help="default: runs/reproduce-SCALE, which targets share")
    parser.add_argument("--dry_run", action="store_true", help="list the runs and stop")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the scale's")
    parser.add_argument("--max_steps", type=int, help="end each run early")
    parser.add_argument("--limit", type=int, help="a seeded sample of N questions per task")
    parser.add_argument("--num_beams", type=int, help="the published suite used 4; default: greedy")
    add_executor_options(parser)
    parser.add_argument(
        "--device_flops",
        type=float | None,
        help="peak operations per second of the device that --dry_run assumes",
    )
    parser.add_argument(
        "--device_bandwidth", type=float | None, help="its peak memory bandwidth, bytes per second"
    )
    return parser


def run(args: Any) -> int:
    """List the runs, or run them and write the target's tables and figures."""
    overrides = {name: getattr(args, name) for name in load_target.__kwdefaults__ or ()}
    target = load_target(args.target, args.scale, **overrides)
    console = Console(markup=False, highlight=False)
    if target.grid is None:
        return run_inspect(target, args, console)
    if args.dry_run:
        with console.status("counting parameters"):
            lines = dry_run(target, resolve_recipe, assumed_device(args))
        console.print("\n".join(lines), soft_wrap=True)
        return 0
    target = check_training_data(target, any_data=args.any_data)
    assert target.grid is not None
    study = run_grid(target.grid, args, console)
    if study.runs:
        print_tables(write_target_tables(target, study))
        draw_target_figures(target, study)
        console.print(
            f"finished runs: {len(study.runs)}, in {study.folder}; tables and figures: "
            f"{target.folder}",
            soft_wrap=True,
        )
    return 1 if study.failures else 0


def assumed_device(args: Any) -> Device:
    """The device of the estimates: an H100 at full scale, a CPU core at tiny, or the one given."""
    device = H100 if args.scale == "full" else CPU_CORE
    options = {"flops": args.device_flops, "bandwidth": args.device_bandwidth}
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if not value > 0:
            raise RosaError(f"--device_{key} must be above 0, not {value}")
    return replace(device, name="such device", **given) if given else device


def run_inspect(target: Target, args: Any, console: Console) -> int:
    """Figure 1 trains nothing: it is `rosa inspect` on the target's model."""
    for name in ("seeds", "max_steps", "limit", "num_beams", "workers"):
        if getattr(args, name) is not None:
            raise RosaError(f"{target.name} trains and evaluates nothing, so remove --{name}")
    model = target.models[0]
    argv = [model, "--out", str(target.folder), *(["--data", args.data] if args.data else [])]
    if not args.dry_run:
        inspect.run(inspect.build_parser().parse_args(argv))
        return 0
    weights = (2 if args.scale == "full" else 4) * base_size(model)
    console.print(f"{target.name}: {target.title}\nrosa inspect {' '.join(argv)}", soft_wrap=True)
    console.print(f"one forward pass over 64 texts; weights take {format_bytes(weights)}")
    return 0
