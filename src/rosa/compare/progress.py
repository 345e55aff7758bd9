"""The live table of a study: the state of each method's runs, what runs now, and the time left."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rosa.common.files import read_jsonl
from rosa.common.formatting import format_duration
from rosa.common.progress import Throttle, print_line
from rosa.compare.job import FINISHED, Job, by_group, read_status
from rosa.compare.schedule import Schedule
from rosa.train.run_folder import RunFolder

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▶", "cyan"),
    "done": ("✓", "green"),
    "diverged": ("∞", "yellow"),
    "interrupted": ("■", "red"),
    "failed": ("✗", "red"),
}
RECENT = 20  # finished runs whose mean time gives the time left


class StudyProgress:
    """Shows a schedule: a live table on a terminal, else a line for every run that ends."""

    def __init__(self, schedule: Schedule, workers: int, console: Console) -> None:
        self._schedule = schedule
        self._workers = workers
        self._console = console
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._due = Throttle()
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._console.is_terminal:
            self.refresh()
            self._live.stop()

    def ended(self, job: Job) -> None:
        """Count the time of a job that ended; print a line for it if there is no table."""
        state = self._schedule.states[job.id]
        if state == "done":
            self._seconds.append(read_status(self._schedule.study, job.id).get("seconds", 0.0))
        if not self._console.is_terminal:
            error = self._schedule.errors.get(job.id, "")
            print_line(self._console, f"{self.summary()}  {state} {job.id}  {error}")

    def refresh(self) -> None:
        """Draw the present state; without a terminal, a line every 30 seconds."""
        if self._console.is_terminal:
            self._live.update(self.render(), refresh=True)
        elif self._due():
            print_line(self._console, f"{self.summary()}  {'; '.join(self._activities())}")

    def render(self) -> Group:
        """The table of all groups, what runs now, and the summary."""
        lines = [Text(f"  {line}") for line in self._activities()]
        return Group(self._table(), *lines, Text(self.summary(), style="bold"))

    def _activities(self) -> list[str]:
        study, states = self._schedule.study, self._schedule.states
        running = [job for job in self._schedule.jobs if states[job.id] == "running"]
        return [f"{job.id}: {activity(study, job)}" for job in running]

    def summary(self) -> str:
        """`12 of 90 runs done, 1 failed, about 14 min left`."""
        schedule = self._schedule
        text = f"{schedule.count(*FINISHED)} of {len(schedule.jobs)} runs done"
        if failed := schedule.count("failed", "interrupted"):
            text += f", {failed} failed"
        remaining = schedule.count("waiting", "running")
        if self._seconds and remaining:
            left = fmean(self._seconds) * remaining / self._workers
            text += f", about {format_duration(left, digits=2)} left"
        return text

    def _table(self) -> Table:
        table = Table(title="runs", title_justify="left")
        for column in ("model", "training set", "method", "tuning", "seeds"):
            table.add_column(column, no_wrap=column in ("tuning", "seeds"))
        for group, jobs in by_group(self._schedule.jobs).items():
            tuning, runs = Text(), Text()
            for job in jobs:
                mark = MARKS[self._schedule.states[job.id]]
                (tuning if job.is_tuning else runs).append(*mark)
            table.add_row(group.model, group.train_set, group.method, tuning, runs)
        return table


def activity(study: Path, job: Job) -> str:
    """What a running job does: `training, step 45 of 120, ...`, or the task it answers."""
    status = read_status(study, job.id)
    state, folder = status.get("state"), study / job.id
    if state == "training":
        last = (read_jsonl(RunFolder(folder).metrics, partial=True) or [{}])[-1]
        elapsed = format_duration(time.time() - status["started"], digits=2)
        return f"training, {describe_step(last, job)}, {elapsed} so far"
    if state == "evaluating":
        answers = (folder / "evaluation").glob("*.jsonl")
        newest = max(answers, key=lambda file: file.stat().st_mtime, default=None)
        if newest is None:
            return "evaluating"
        return f"evaluating {newest.stem}, {newest.read_bytes().count(10)} answers"
    return "stopped" if state == "stopped" else "starting"


def describe_step(last: dict[str, Any], job: Job) -> str:
    """`step 45 of 120, loss 0.3124, lr 9.8e-04, 445 tokens/s` from the last line of the metrics."""
    step, epoch = last.get("step", 0), last.get("epoch", 0)
    total = job.recipe.max_steps or (round(step / epoch * job.recipe.epochs) if epoch else None)
    parts = [f"step {step} of {total}" if total else f"step {step}"]
    for key, shown in (
        ("loss", "loss {:.4f}"),
        ("learning_rate", "lr {:.1e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    ):
        if key in last:
            parts.append(shown.format(last[key]))
    return ", ".join(parts)
