"""`rosa compare` in Python: plan, run what is not done, gather."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rosa.common.files import PART, write_whole
from rosa.common.lock import LOCK, folder_in_use
from rosa.compare.gather import gather, write
from rosa.compare.grid import Evaluation, Grid
from rosa.compare.job import prepare_questions
from rosa.compare.plan import Job, Resolve, plan
from rosa.compare.progress import Watch
from rosa.compare.results import GRID, StudyResults
from rosa.compare.schedule import Engine, Schedule
from rosa.compare.training_data import verified
from rosa.errors import RosaError
from rosa.evaluate.forgetting import text_for
from rosa.train.run_folder import first_difference

if TYPE_CHECKING:
    from rich.console import Console

REPORT = "report.html"
# What may change between two calls on one study: more of the same, or where its data lies.
GROWING = ("output_dir", "models", "methods", "training_sets", "seeds")


def compare(
    grid: Grid,
    resolve: Resolve,
    make_engine: Callable[[Path], Engine],
    console: Console,
) -> StudyResults:
    """Run every job of the grid that is not done, and return what all of them say.

    `results.json`, the tables and the pictures are written anew after each run.

    Args:
        grid: what to compare; its folder may hold an earlier part of the same study.
        resolve: turns a mapping of recipe keys into a checked recipe.
        make_engine: gives the engine for a study's folder; not called where all is done.
        console: where the live table goes.

    Raises:
        RosaError: a mistake in the grid, or a folder that holds something else.
    """
    jobs = plan(grid, resolve)
    verified(grid.training_sets)
    for train_set in grid.training_sets.values():  # what cannot be asked is found out now
        prepare_questions(train_set.tasks, grid.evaluate)
    if grid.evaluate.forgetting is not None:
        text_for(grid.models[0], grid.evaluate.forgetting)
    folder = Path(grid.output_dir)
    refuse_other_files(folder)
    with folder_in_use(folder):
        claim(folder, grid)
        schedule = Schedule(folder, jobs)
        writer = StudyWriter(schedule, grid)
        if schedule.waiting:
            _run(schedule, make_engine(folder), writer, console)
        return writer.finish()


def _run(schedule: Schedule, engine: Engine, writer: StudyWriter, console: Console) -> None:
    with Watch(schedule, engine.workers, console) as watch:

        def changed(job: Job) -> None:
            watch.changed(job)
            if not job.is_tuning:
                writer.write()

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


class StudyWriter:
    """Writes what is known so far: results, tables, and in the end the page that shows it all."""

    def __init__(self, schedule: Schedule, grid: Grid) -> None:
        from rosa.common.environment import describe_environment
        from rosa.compare.contamination import check_overlap

        self._schedule = schedule
        self._grid = grid
        self._environment = merged_environment(
            schedule.study, describe_environment(), runs_now=bool(schedule.waiting)
        )
        check_overlap(gather(schedule, grid, self._environment))

    def write(self) -> StudyResults:
        """`results.json` and the tables, from the runs that are done."""
        from rosa.report.tables.write import write_tables

        results = gather(self._schedule, self._grid, self._environment)
        write(results)
        write_tables(results, results.folder / "tables")
        return results

    def finish(self) -> StudyResults:
        """The same, the pictures, and `report.html`."""
        from rosa.report.html import write_report
        from rosa.report.plots.study_plots import write_pictures

        results = self.write()
        write_pictures(results, results.folder / "figures")
        if results.runs or results.failures:
            write_report(results, results.folder / REPORT)
        return results


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
        if isinstance(before.get("evaluate"), dict):  # an option added since then had its default
            before["evaluate"] = {**asdict(Evaluation()), **before["evaluate"]}
        if key := first_difference(before, shared):
            raise RosaError(
                f"output_dir '{folder}' holds a study with another {key}; name another folder"
            )
    write_whole(file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))


def refuse_other_files(folder: Path) -> None:
    """Raises RosaError where the folder is none, or holds files and no study."""
    if folder.exists() and not folder.is_dir():
        raise RosaError(f"output_dir '{folder}' is a file; name a folder")
    if not folder.is_dir() or (folder / GRID).is_file():
        return
    if any(file.name not in (LOCK, GRID + PART) for file in folder.iterdir()):
        raise RosaError(f"output_dir '{folder}' is not empty and holds no study; name another")


def _read(file: Path) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        raise RosaError(f"{file} is damaged; put the study's grid back there") from None
