"""`rosa compare` in Python: plan, run what is not done, gather."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rosa.common.environment import describe_environment
from rosa.common.files import LOCK_FILE, PARTIAL_SUFFIX, atomic_write, lock_folder
from rosa.compare.contamination import check_overlap
from rosa.compare.gather import gather, write
from rosa.compare.grid import STUDY_OPTIONS, Grid
from rosa.compare.plan import Job, ResolveRecipe, plan
from rosa.compare.progress import Watch
from rosa.compare.results import GRID, StudyResults
from rosa.compare.schedule import Engine, Schedule
from rosa.compare.training_data import verified
from rosa.errors import RosaError
from rosa.evaluate.forgetting import load_text
from rosa.evaluate.requests import build_requests
from rosa.train.run_folder import first_difference

if TYPE_CHECKING:
    from rich.console import Console

WriteOutput = Callable[[StudyResults, bool], None]  # (results, whether the study has finished)
# What may change between two calls on one study: more of the same, or where its data lies.
GROWING = ("output_dir", "models", "methods", "training_sets", "seeds")


def compare(
    grid: Grid,
    resolve: ResolveRecipe,
    make_engine: Callable[[Path], Engine],
    console: Console,
    write_output: WriteOutput,
) -> StudyResults:
    """Run every job of the grid that is not done, and return the results of all of them.

    `results.json` and the output are written again after each run.

    Args:
        grid: what to compare; its folder may hold an earlier part of the same study.
        resolve: turns a mapping of recipe keys into a checked recipe.
        make_engine: gives the engine for a study's folder; not called where all is done.
        console: where the live table goes.
        write_output: writes tables and reports; called with the results so far and whether the
            study has finished.

    Raises:
        RosaError: a mistake in the grid, or a folder that holds something else.
    """
    jobs = plan(grid, resolve)
    verified(grid.training_sets)
    for train_set in grid.training_sets.values():  # before anything is trained
        build_requests(train_set.tasks, grid.evaluate)
    if grid.evaluate.forgetting is not None:
        load_text(grid.models[0], grid.evaluate.forgetting)
    folder = Path(grid.output_dir)
    refuse_other_files(folder)
    with lock_folder(folder):
        claim(folder, grid)
        schedule = Schedule(folder, jobs)
        environment = merged_environment(
            folder, describe_environment(), runs_now=bool(schedule.waiting)
        )
        check_overlap(gather(schedule, grid, environment))

        def write_results(finished: bool) -> StudyResults:
            results = gather(schedule, grid, environment)
            write(results)
            write_output(results, finished)
            return results

        if schedule.waiting:
            _run(schedule, make_engine(folder), write_results, console)
        return write_results(True)


def _run(
    schedule: Schedule, engine: Engine, write_results: Callable[[bool], Any], console: Console
) -> None:
    with Watch(schedule, engine.workers, console) as watch:

        def changed(job: Job) -> None:
            watch.changed(job)
            if not job.is_tuning:
                write_results(False)

        with sigterm_as_ctrl_c():
            schedule.run(engine, changed, watch.tick)


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """A study that a scheduler or a shell ends lets its runs save, as one that a person ends."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: leave the caller's handler alone
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def merged_environment(study: Path, now: dict[str, Any], runs_now: bool) -> dict[str, Any]:
    """Where the study's runs were made; `earlier` lists what else than the latest there was.

    Gathering alone changes nothing: the figures are of the machine that made them.
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


def claim(folder: Path, grid: Grid) -> None:
    """Make the folder this study's, or check that it is.

    A study may grow (more models, methods, sets, seeds); what its finished runs shared must stay.

    Raises:
        RosaError: the folder holds another study or other files.
    """
    refuse_other_files(folder)
    file = folder / GRID
    now = asdict(grid)
    if file.is_file():
        before = _read(file)
        shared = {key: value for key, value in now.items() if key not in GROWING}
        if isinstance(before.get("evaluate"), dict):
            # An option added since has its default; no worked examples were 0, and are null now.
            before["evaluate"] = {**asdict(STUDY_OPTIONS), **before["evaluate"]}
            for options in (before["evaluate"], now["evaluate"]):
                options["num_fewshot"] = options["num_fewshot"] or None
        if key := first_difference(before, shared):
            raise RosaError(
                f"output_dir '{folder}' holds a study with another {key}; name another folder"
            )
    atomic_write(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def refuse_other_files(folder: Path) -> None:
    """Raises RosaError where the folder is none, or holds files and no study."""
    if folder.exists() and not folder.is_dir():
        raise RosaError(f"output_dir '{folder}' is a file; name a folder")
    if not folder.is_dir() or (folder / GRID).is_file():
        return
    if any(file.name not in (LOCK_FILE, GRID + PARTIAL_SUFFIX) for file in folder.iterdir()):
        raise RosaError(f"output_dir '{folder}' is not empty and holds no study; name another")


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise RosaError(f"{file} is damaged; put the study's grid back there") from None
