"""`rosa compare` in Python: plan the runs, run those that are not done, gather their results."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rosa.common.environment import describe_environment
from rosa.common.files import LOCK_FILE, PARTIAL_SUFFIX, atomic_write, lock_folder
from rosa.compare.contamination import write_overlap
from rosa.compare.executors import Executor
from rosa.compare.gather import gather_results
from rosa.compare.grid import STUDY_OPTIONS, Grid
from rosa.compare.job import Job
from rosa.compare.plan import ResolveRecipe, plan
from rosa.compare.progress import StudyProgress
from rosa.compare.results import GRID, StudyResults
from rosa.compare.schedule import Schedule
from rosa.compare.training_files import check_training_files
from rosa.compare.tuning import LearningRateSearch
from rosa.data.sources import is_local, load_located_rows
from rosa.errors import RosaError
from rosa.evaluate.forgetting import load_text
from rosa.evaluate.requests import build_requests
from rosa.models.loading import check_model_files
from rosa.train.run_folder import field_defaults, first_difference

if TYPE_CHECKING:
    from rich.console import Console

WriteOutput = Callable[[StudyResults, bool], None]  # (results, whether the study has finished)
# Keys that may change between two calls on one study: more of the same, or where its data is.
GROWING = ("output_dir", "models", "methods", "training_sets", "seeds")


def compare(
    grid: Grid,
    resolve: ResolveRecipe,
    make_executor: Callable[[Path], Executor],
    console: Console,
    write_output: WriteOutput,
) -> StudyResults:
    """Run every job of the grid that is not done, and return the results of all of them.

    `results.json` and the output are written again after each run.

    Args:
        grid: what to compare; its folder may hold an earlier part of the same study.
        resolve: turns a mapping of recipe keys into a checked recipe.
        make_executor: makes the executor for a study's folder; not called if all is done.
        console: where the live table is shown.
        write_output: writes tables and reports; called with the results so far and whether the
            study has finished.

    Raises:
        RosaError: a mistake in the grid, or a folder that holds something else.
    """
    jobs = plan(grid, resolve)
    folder = Path(grid.output_dir)
    check_output_dir(folder)
    for model in grid.models:  # fails before anything is trained
        check_model_files(model)
    check_training_files(grid.training_sets)
    for train_set in grid.training_sets.values():
        local = [source for source in train_set.sources if is_local(source)]
        load_located_rows(local, grid.columns(train_set))
        build_requests(train_set.tasks, grid.evaluate)
    if grid.evaluate.forgetting is not None:
        load_text(grid.models[0], grid.evaluate.forgetting)
    with lock_folder(folder):
        save_grid(folder, grid)
        schedule = Schedule(folder, jobs)
        environment = merge_environments(
            folder, describe_environment(), runs_now=bool(schedule.waiting)
        )
        write_overlap(grid)

        def write(finished: bool) -> StudyResults:
            results = gather_results(schedule, grid, environment)
            results.save()
            write_output(results, finished)
            return results

        def on_end(job: Job) -> None:
            progress.ended(job)
            if not job.is_tuning:
                write(finished=False)

        if schedule.waiting:
            executor = make_executor(folder)
            progress = StudyProgress(schedule, executor.workers, console)
            with progress, sigterm_as_keyboard_interrupt():
                schedule.run(executor, on_end, progress.refresh)
        return write(finished=True)


@contextlib.contextmanager
def sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """Makes SIGTERM, which a cluster's scheduler sends, let the runs save as Ctrl-C does."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # no other may set a handler
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def merge_environments(study: Path, now: dict[str, Any], runs_now: bool) -> dict[str, Any]:
    """The environment of the study's runs; `earlier` lists those before the latest.

    Gathering results without a new run changes nothing: costs are of the machine that ran them.
    """
    try:
        before = StudyResults.load(study).environment
    except RosaError:
        return now
    if not runs_now:
        return before
    earlier = before.pop("earlier", [])
    if {**before, "date": None} != {**now, "date": None}:
        earlier = [*earlier, before]
    return {**now, "earlier": earlier} if earlier else now


def save_grid(folder: Path, grid: Grid) -> None:
    """Write the grid into its folder, which may hold an earlier part of the same study.

    A study may grow (more models, methods, sets, seeds); what its finished runs share must stay.

    Raises:
        RosaError: the folder holds another study.
    """
    file = folder / GRID
    now = asdict(grid)
    if file.is_file():
        try:
            before = dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise RosaError(f"{file} is damaged; put the study's grid back there") from None
        if isinstance(before.get("evaluate"), dict):
            # An option added since then had its default; num_fewshot was 0 where it is null now.
            before["evaluate"] = {**asdict(STUDY_OPTIONS), **before["evaluate"]}
            for options in (before["evaluate"], now["evaluate"]):
                options["num_fewshot"] = options["num_fewshot"] or None
        if isinstance(before.get("tune"), dict):
            before["tune"] = {**field_defaults(LearningRateSearch), **before["tune"]}
        shared = {key: value for key, value in now.items() if key not in GROWING}
        if key := first_difference(before, shared):
            raise RosaError(
                f"output_dir '{folder}' holds a study with another {key}; name another folder"
            )
    atomic_write(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def check_output_dir(folder: Path) -> None:
    """Raises RosaError unless a folder is new, empty or a study's."""
    if folder.exists() and not folder.is_dir():
        raise RosaError(f"output_dir '{folder}' is a file; name a folder")
    if not folder.is_dir() or (folder / GRID).is_file():
        return
    if any(file.name not in (LOCK_FILE, GRID + PARTIAL_SUFFIX) for file in folder.iterdir()):
        raise RosaError(f"output_dir '{folder}' is not empty and holds no study; name another")
