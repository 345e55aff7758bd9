"""`rosa reproduce TARGET`: a table or figure of the paper, at its scale or on the toy model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rosa.cli.parser import Parser
from rosa.common.formatting import format_bytes, format_duration
from rosa.errors import RosaError

if TYPE_CHECKING:
    from rich.console import Console

    from rosa.budget.time import Device
    from rosa.common.tables.model import Table
    from rosa.compare.results import StudyResults
    from rosa.reproduce.dry_run import Forecast
    from rosa.reproduce.targets import Target

FIGURES = {"figure3": ("figure3",), "figure4": ("figure4",), "table4": ("figure3", "figure4")}


def build_parser() -> Parser:
    """The options of `rosa reproduce`."""
    parser = Parser(
        prog="rosa reproduce",
        description="Run everything behind a table or figure of the paper, then write it with the "
        "paper's own numbers beside it. The same command goes on where it stopped.",
    )
    parser.add_argument("target", help="table1, table2, table3, table4, figure1, figure3, figure4")
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
        "--any_data", action="store_true", help="take other training data, and call it a stand-in"
    )
    parser.add_argument(
        "--test_data",
        help="folder with <name>/test.json; default: looked for in --data, then the hub",
    )
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="ask these tasks or groups only")
    parser.add_argument("--output_dir", help="default: runs/reproduce-SCALE, which targets share")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list the runs and stop"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the scale's")
    parser.add_argument("--max_steps", type=int, help="end each run early")
    parser.add_argument("--limit", type=int, help="ask a seeded sample of N questions per task")
    parser.add_argument("--num_beams", type=int, help="the published suite used 4; default: greedy")
    parser.add_argument("--workers", type=int, help="runs at a time; default: one per GPU or core")
    parser.add_argument("--engine", type=Literal["local", "ray"], default="local")
    parser.add_argument(
        "--device_flops",
        type=float | None,
        default=None,
        help="peak operations per second of the device that --dry_run assumes",
    )
    parser.add_argument(
        "--device_bandwidth", type=float | None, default=None, help="likewise, bytes per second"
    )
    return parser


def run(args: Any) -> int:
    """List the runs, or run them and write the target's tables and pictures."""
    from rich.console import Console

    from rosa.reproduce.targets import Changes, checked, load_target

    changes = Changes(**{field.name: getattr(args, field.name) for field in fields(Changes)})
    target = load_target(args.target, args.scale, changes)
    console = Console(markup=False, highlight=False)
    if target.grid is None:
        return inspect(target, args, console)
    if args.dry_run:
        list_runs(target, assumed_device(args), console)
        return 0
    target = checked(target, any_data=args.any_data)
    study = compare(target, args, console)
    for failure in study.failures:
        console.print(f"failed: {failure['run']}: {failure['error']}", soft_wrap=True)
    if study.runs:
        conclude(target, study, console)
    return 1 if study.failures else 0


def compare(target: Target, args: Any, console: Console) -> StudyResults:
    """Every run of the target that is not done yet."""
    from rosa.cli.compare import engine
    from rosa.cli.recipe_parser import resolve_recipe
    from rosa.compare.run import compare
    from rosa.report.study_output import write_study_output

    grid = target.grid
    assert grid is not None
    if args.workers is not None and args.workers < 1:
        raise RosaError(f"workers must be at least 1, not {args.workers}")
    return compare(
        grid,
        resolve_recipe,
        lambda folder: engine(args.engine, folder, args.workers, grid.threads),
        console,
        write_study_output,
    )


def conclude(target: Target, study: StudyResults, console: Console) -> None:
    """The target's tables, the paper's, and its pictures, into its folder; tables printed too."""
    from rosa.common.tables.render import FORMATS, print_table
    from rosa.report.tables.build import main_table
    from rosa.report.tables.sections import TableOptions, sections
    from rosa.report.tables.write import save, write_tables
    from rosa.reproduce import figures

    tables = [main_table(section) for section in sections(study, TableOptions())]
    printed = papers_own(target.name)
    files = write_tables(study, target.folder) + save(printed, target.folder, FORMATS)
    for table in [*tables, *printed]:
        print_table(table, console)
        console.print()
    for name in FIGURES.get(target.name, ()):
        draw = {"figure3": figures.draw_figure3, "figure4": figures.draw_figure4}[name]
        for model in target.models:
            files.append(target.folder / f"{name}.png")
            draw(study, model, files[-1])
    console.print(
        f"{len(study.runs)} finished runs are in {study.folder}, tables and pictures in "
        f"{target.folder}",
        soft_wrap=True,
    )


def papers_own(target: str) -> list[Table]:
    """The paper's tables for a target; its figures 3 and 4 draw the two halves of Table 4."""
    from rosa.report.tables.paper import paper_tables

    half = {"figure3": "k_ratio", "figure4": "ablation"}.get(target)
    tables = paper_tables("table4" if half else target)
    return [table for table in tables if half is None or table.name.endswith(half)]


def list_runs(target: Target, device: Device, console: Console) -> None:
    """Every run with its budget, and what it will need on the device."""
    from rosa.cli.recipe_parser import resolve_recipe
    from rosa.compare.plan import plan
    from rosa.reproduce.dry_run import forecast

    grid = target.grid
    assert grid is not None
    with console.status("counting parameters"):
        found = forecast(grid, plan(grid, resolve_recipe), device, target.work)
    console.print(f"{target.name}: {target.title}")
    for line in run_lines(found):
        console.print(line, soft_wrap=True)
    total = format_duration(sum(run.seconds for run in found))
    console.print(
        f"{len(found)} runs, about {total} on one {device.name} at "
        f"{device.utilisation:.0%} of its peak, computing alone: expect more (guides/comparing.md)",
        soft_wrap=True,
    )
    for run in {run.budget.title: run for run in found if run.memory is None}.values():
        console.print(f"{run.budget.title}: {run.budget.note}", soft_wrap=True)
    for name, train_set in grid.training_sets.items():
        if train_set.sha256 and not Path(str(train_set.data)).is_file():
            console.print(
                f"{name} ({train_set.data}) is not here: its rows and lengths are taken as known",
                soft_wrap=True,
            )


def run_lines(found: Iterable[Forecast]) -> list[str]:
    """A line per run, in columns."""
    rows = [("model", "training set", "method", "seed", "trainable", "%", "memory", "train", "ask")]
    rows += [_cells(run) for run in found]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * 3 + [str.rjust] * 6
    return [
        "  ".join(pad(c, w) for pad, c, w in zip(pads, row, widths, strict=True)) for row in rows
    ]


def _cells(run: Forecast) -> tuple[str, str, str, str, str, str, str, str, str]:
    from rosa.models.loading import short_name

    group, budget = run.job.group, run.budget
    return (
        short_name(group.model),
        group.train_set,
        group.method,
        str(run.job.seed),
        "-" if budget.trainable is None else f"{budget.trainable:,}",
        "-" if budget.percent is None else f"{budget.percent:.3f}",
        "-" if run.memory is None else format_bytes(run.memory),
        "-" if run.training is None else format_duration(run.training, digits=2),
        "-" if run.evaluation is None else format_duration(run.evaluation, digits=2),
    )


def assumed_device(args: Any) -> Device:
    """What the estimates assume: an H100 at full scale, a CPU core at tiny, or what was given."""
    from rosa.budget.time import CPU_CORE, H100

    device = H100 if args.scale == "full" else CPU_CORE
    given = {"flops": args.device_flops, "bandwidth": args.device_bandwidth}
    said = {key: value for key, value in given.items() if value is not None}
    for key, value in said.items():
        if not value > 0:
            raise RosaError(f"--device_{key} must be above 0, not {value}")
    return replace(device, name="such device", **said) if said else device


def inspect(target: Target, args: Any, console: Console) -> int:
    """Figure 1 trains nothing: it is `rosa inspect` on the target's model."""
    from rosa.cli import inspect as command

    for name in ("seeds", "max_steps", "limit", "num_beams", "workers"):
        if getattr(args, name) is not None:
            raise RosaError(f"{target.name} trains and asks nothing, so --{name} is of no use")
    model = target.models[0]
    words = [model, "--out", str(target.folder), *(["--data", args.data] if args.data else [])]
    if not args.dry_run:
        command.run(command.build_parser().parse_args(words))
        return 0
    from rosa.reproduce.dry_run import base_size

    weights = (2 if args.scale == "full" else 4) * base_size(model)
    console.print(f"{target.name}: {target.title}\nrosa inspect {' '.join(words)}", soft_wrap=True)
    console.print(f"one forward pass over 64 texts; weights take {format_bytes(weights)}")
    return 0
