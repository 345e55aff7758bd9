"""Progress of long commands: a bar on a terminal, else a line at least every 30 seconds."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column

from rosa.common.formatting import format_duration

REPORT_SECONDS = 30.0


class Throttle:
    """True when called `REPORT_SECONDS` or more after it last was, or after `restart`."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start the interval again."""
        self._last = time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self._last >= REPORT_SECONDS
        if due:
            self.restart()
        return due


def print_line(console: Console, line: str) -> None:
    """A line as it is, neither wrapped nor read as markup; above the bar if there is one."""
    console.print(line.rstrip(), soft_wrap=True, highlight=False, markup=False)


def progress_bar(console: Console) -> Progress:
    """What is done, bar, step of how many, then the fields `left` and `note`.

    Where the line is too short, the bar goes first, then the end of the note.
    """
    fixed = [Column(no_wrap=True) for _ in range(3)]
    return Progress(
        TextColumn("{task.description}", markup=False, table_column=fixed[0]),
        BarColumn(bar_width=20 if console.width >= 80 else 6),
        MofNCompleteColumn(table_column=fixed[1]),
        TextColumn("{task.fields[left]}", table_column=fixed[2]),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=console,
        expand=True,
    )


def time_left(seconds: float, done: float, remaining: float) -> str:
    """`2.1 min left`, at the mean speed of what is `done`; empty where that tells nothing."""
    if not (done > 0 and remaining > 0):
        return ""
    return f"{format_duration(seconds / done * remaining, digits=2)} left"
