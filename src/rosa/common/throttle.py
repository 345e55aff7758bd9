"""How often a long command prints where it is, without a terminal to draw a bar on."""

from __future__ import annotations

import time

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
