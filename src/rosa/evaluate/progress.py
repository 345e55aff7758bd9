"""Shows how far an evaluation is: a bar on a terminal, else a line at least every 30 seconds."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from rosa.common.formatting import format_bytes
from rosa.common.progress import Throttle, print_line, progress_bar, time_left
from rosa.common.resources import PeakHostMemory, peak_device_memory


class AnswerProgress:
    """Counts answers of `total`, those of an earlier run included; prints only if `shown`."""

    def __init__(self, total: int, device: Any, *, shown: bool) -> None:
        self._total = total
        self._device = device
        self._console = Console(stderr=True, quiet=not shown)
        self._on_terminal = shown and self._console.is_terminal
        self._answers = self._new = 0
        self._host_memory = PeakHostMemory()
        self._due = Throttle()
        self._bar = progress_bar(self._console)
        self._row = self._bar.add_task("", total=total, left="", note="")

    def __enter__(self) -> AnswerProgress:
        self._host_memory.start()
        self._began = time.perf_counter()
        if self._on_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._host_memory.stop()
        if self._on_terminal:
            self._bar.stop()

    def advance(self, title: str, answers: int, speed: float, *, asked: bool = True) -> None:
        """Counts answers to the task `title`: just generated if `asked`, else read from disk."""
        self._answers += answers
        self._new += answers * asked
        left = time_left(time.perf_counter() - self._began, self._new, self._total - self._answers)
        note = f"{speed:,.0f} tokens/s" if speed else ""
        if self._on_terminal:
            self._bar.update(
                self._row, completed=self._answers, description=title, left=left, note=note
            )
        elif self._due():
            peak = peak_device_memory(self._device) or self._host_memory.read()
            parts = [title, f"{self._answers}/{self._total} answers", note, left]
            self.print("  ".join(filter(None, [*parts, f"peak {format_bytes(peak)}"])))

    def print(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        print_line(self._console, line)
