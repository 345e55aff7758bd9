"""The live table of a study: how each method's runs stand, what runs now, and the time left."""

from __future__ import annotations

import json
import time
from collections import deque
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rosa.common.formatting import format_duration
from rosa.compare.job import read_status
from rosa.compare.plan import Job
from rosa.compare.schedule import DONE, Schedule

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "stopped": ("■", "yellow"),
    "done": ("✓", "green"),
    "diverged": ("∞", "yellow"),
    "failed": ("✗", "red"),
}
RECENT = 20  # finished runs that the estimate of the time left goes by


class Watch:
    """Shows a schedule: a live table on a terminal, else a line for every run that ends."""

    def __init__(self, schedule: Schedule, workers: int, console: Console) -> None:
        self._schedule = schedule
        self._workers = workers
        self._console = console
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._console.is_terminal:
            self.tick()
            self._live.stop()

    def changed(self, job: Job) -> None:
        """A job ended: count its time, and say so where there is no table."""
        status = read_status(self._schedule.study, job.id)
        state = self._schedule.states[job.id]
        if state == "done":
            self._seconds.append(status.get("seconds", 0.0))
        if not self._console.is_terminal:
            error = self._schedule.errors.get(job.id, "")
            line = f"{self.summary()}  {state} {job.id}  {error}".rstrip()
            self._console.print(line, soft_wrap=True)

    def tick(self) -> None:
        """Draw the present state."""
        if self._console.is_terminal:
            self._live.update(self.render(), refresh=True)

    def render(self) -> Group:
        """The table of all groups, what runs now, and the summary."""
        running = [j for j in self._schedule.jobs if self._schedule.states[j.id] == "running"]
        lines = [Text(f"  {job.id}: {doing(self._schedule.study, job)}") for job in running]
        return Group(self._table(), *lines, Text(self.summary(), style="bold"))

    def summary(self) -> str:
        """`12 of 90 runs done, 1 failed, about 14 min left`."""
        schedule = self._schedule
        text = f"{schedule.count(*DONE)} of {len(schedule.jobs)} runs done"
        if failed := schedule.count("failed"):
            text += f", {failed} failed"
        left = self.seconds_left()
        return text if left is None else f"{text}, about {format_duration(left, digits=2)} left"

    def seconds_left(self) -> float | None:
        """From the mean time of the latest runs; None before the first has ended."""
        remaining = self._schedule.count("waiting", "running")
        if not self._seconds or not remaining:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return mean * remaining / self._workers

    def _table(self) -> Table:
        table = Table(title="runs", title_justify="left")
        for column in ("model", "training set", "method", "tuning", "seeds"):
            table.add_column(column, no_wrap=column in ("tuning", "seeds"))
        for group, jobs in by_group(self._schedule.jobs).items():
            tuning = [job for job in jobs if job.is_tuning]
            runs = [job for job in jobs if not job.is_tuning]
            cells = [self._marks(tuning), self._marks(runs)]
            table.add_row(group.model, group.train_set, group.method, *cells)
        return table

    def _marks(self, jobs: list[Job]) -> Text:
        text = Text()
        for job in jobs:
            text.append(*MARKS[self._schedule.states[job.id]])
        return text


def by_group(jobs: list[Job]) -> dict[Any, list[Job]]:
    """The jobs of each group, in the order of the groups' first jobs."""
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.group, []).append(job)
    return groups


def doing(study: Path, job: Job) -> str:
    """What a running job does: `step 45 of 120, loss 0.3124`, or the task it is asked."""
    status = read_status(study, job.id)
    state = status.get("state")
    if state == "evaluating":
        return _asked(study / job.id / "evaluation")
    if state != "training":
        return "stopped" if state == "stopped" else "starting"
    last = _last_line(study / job.id / "metrics.jsonl")
    total = f" of {job.recipe.max_steps}" if job.recipe.max_steps else ""
    loss = f", loss {last['loss']:.4f}" if "loss" in last else ""
    spent = format_duration(time.time() - status["started"], digits=2)
    return f"training, step {last.get('step', 0)}{total}{loss}, {spent} so far"


def _asked(folder: Path) -> str:
    files = sorted(folder.glob("*.jsonl"), key=lambda f: f.stat().st_mtime)
    if not files:
        return "evaluating"
    with files[-1].open("rb") as lines:
        return f"evaluating {files[-1].stem}, {sum(1 for _ in lines)} answers"


def _last_line(file: Path) -> dict[str, Any]:
    """The newest whole record of a JSONL file that is being written."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    for line in reversed(lines[-2:]):
        try:
            return json.loads(line)
        except ValueError:
            continue  # half a line
    return {}
