"""How often a long command says where it is, where there is no terminal to draw a bar on."""

from __future__ import annotations

import time

REPORT_SECONDS = 30.0


class Every:
    """True when called at least `seconds` after the last time it was, or after `restart`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Starts the interval again."""
        self._last = time.monotonic()

    def __call__(self) -> bool:
        due = time.monotonic() - self._last >= self._seconds
        if due:
            self.restart()
        return due
