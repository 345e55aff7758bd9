"""`rosa compare GRID.yaml`: models x methods x training sets x seeds, in one resumable folder."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, Literal

import yaml
from rich.console import Console

from rosa.cli.parser import Parser, check_keys
from rosa.cli.recipe_parser import read_yaml_file, resolve_recipe
from rosa.cli.tables import print_tables
from rosa.compare.equal_time import EqualTime
from rosa.compare.executors import make_executor
from rosa.compare.grid import Grid, TrainingSet
from rosa.compare.plan import plan
from rosa.compare.results import StudyResults
from rosa.compare.run import compare
from rosa.compare.tuning import LearningRateSearch
from rosa.errors import RosaError
from rosa.evaluate.options import EvaluationOptions
from rosa.report.study_output import REPORT, write_study_output
from rosa.report.tables.build import main_table
from rosa.report.tables.sections import TableOptions, sections


class GridParser:
    """Parses `GRID.yaml [--key value]` into a `Grid` and the command's own options."""

    def parse_args(self, argv: list[str]) -> tuple[Grid, Any]:
        """The grid and `workers`, `executor`, `dry_run`.

        Raises:
            RosaError: no grid file, bad YAML, an unknown key or a value of the wrong type.
        """
        parser = Parser(
            prog="rosa compare",
            usage="rosa compare GRID.yaml [--key value ...]",
            description="Train and evaluate every method of a grid. Rerun to resume a study that "
            "was stopped and to retry failed runs.",
        )
        parser.add_argument("--config", action="config", help="the grid's file (given first)")
        add_executor_options(parser)
        parser.add_argument("--dry_run", action="store_true", help="list the runs and stop")
        parser.add_class_arguments(Grid)
        if argv and not argv[0].startswith("-"):
            path, rest = argv[0], argv[1:]
            given = {k: v for k, v in read_yaml_file(path, "grid").items() if v is not None}
            check_grid_keys(given, path)
            argv = ["--config", yaml.safe_dump(given), *rest]
        elif not {"-h", "--help"} & set(argv):
            raise RosaError("name a grid: rosa compare GRID.yaml [--key value]")
        options = parser.instantiate(parser.parse_args(argv))
        return Grid(**{name: getattr(options, name) for name in _names(Grid)}), options


def build_parser() -> GridParser:
    return GridParser()


def add_executor_options(parser: Parser) -> None:
    """`--workers` and `--executor`, of every command that runs a grid."""
    parser.add_argument(
        "--workers",
        type=int | None,
        help="runs at a time; default: one per GPU, else as many as the CPU has cores for",
    )
    parser.add_argument(
        "--executor",
        type=Literal["local", "ray"],
        default="local",
        help="run on this machine or on a Ray cluster",
    )


def run(args: tuple[Grid, Any]) -> int:
    """Plan, run, gather."""
    grid, options = args
    console = Console(markup=False, highlight=False)
    if options.dry_run:
        jobs = plan(grid, resolve_recipe)
        for job in jobs:
            console.print(job.id, soft_wrap=True)
        tuning = sum(job.is_tuning for job in jobs)
        console.print(f"{len(jobs) - tuning} runs, and {tuning} to choose learning rates")
        return 0
    results = run_grid(grid, options, console)
    print_tables(main_table(section) for section in sections(results, TableOptions()))
    report = f"; report: {results.folder / REPORT}" if (results.folder / REPORT).is_file() else ""
    line = f"finished runs: {len(results.runs)}, in {results.folder}{report}"
    console.print(line, soft_wrap=True)
    return 1 if results.failures else 0


def run_grid(grid: Grid, options: Any, console: Console) -> StudyResults:
    """Run what is not done of a grid, by `options.executor` and `workers`; print what failed."""
    workers = options.workers
    if workers is not None and workers < 1:
        raise RosaError(f"workers must be at least 1, not {workers}")
    try:
        results = compare(
            grid,
            resolve_recipe,
            lambda study: make_executor(options.executor, study, workers, grid.threads),
            console,
            write_study_output,
        )
    except KeyboardInterrupt:
        console.print("stopped; finished work is kept, rerun to resume")
        raise
    for failure in results.failures:
        console.print(f"failed: {failure['run']}: {failure['error']}", soft_wrap=True)
    return results


def check_grid_keys(given: dict[str, Any], path: str) -> None:
    """Check the keys of a grid's file and of the mappings in it.

    Raises:
        RosaError: an unknown key (the nearest is named), a missing one, or no keys at all.
    """
    check_keys(given, _names(Grid), path)  # missing keys may be on the command line
    sets = given.get("training_sets", {})
    if not isinstance(sets, dict):
        raise RosaError(f"{path}: training_sets must hold names, each with data, tasks, ...")
    parts: list[tuple[str, Any, Any]] = [
        (f"training_sets.{name}", value, TrainingSet) for name, value in sets.items()
    ]
    kinds = {"tune": LearningRateSearch, "evaluate": EvaluationOptions, "equal_time": EqualTime}
    for name, kind in kinds.items():
        parts += [(name, given[name], kind)] if name in given else []
    for where, mapping, kind in parts:
        if not isinstance(mapping, dict):
            known = ", ".join(_names(kind))
            raise RosaError(f"{path}: {where} must hold keys ({known}), not {mapping!r}")
        check_keys(mapping, _names(kind), path, f"{where}.")
        for field in fields(kind):
            if field.default is field.default_factory is MISSING and field.name not in mapping:
                raise RosaError(f"{path}: {where}.{field.name} is missing")


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
