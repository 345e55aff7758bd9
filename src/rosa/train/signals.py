"""How a run answers Ctrl-C and SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rosa.common.distributed import is_main_process, world_size
from rosa.train.callbacks import StopOnSignal

# Seconds in which a second signal is the same Ctrl-C: a launcher passes it on to processes that
# the terminal has already signaled.
DUPLICATE_SIGNAL_WINDOW = 2.0 if world_size() > 1 else 0.0


@contextmanager
def stop_on_signals(stopper: StopOnSignal) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops the run after its step, saved; the second at once."""
    first = 0.0

    def request(number: int, frame: Any) -> None:
        nonlocal first
        if stopper.requested and time.monotonic() - first > DUPLICATE_SIGNAL_WINDOW:
            raise KeyboardInterrupt
        if not stopper.requested:
            stopper.requested, first = True, time.monotonic()
            if is_main_process():
                with suppress(OSError):  # of `2>&1 | tee`, Ctrl-C has ended tee too
                    os.write(
                        2, b"\nstopping after this step, with a checkpoint; again to stop now\n"
                    )

    signals = [signal.SIGINT, signal.SIGTERM]
    try:
        before = [signal.signal(s, request) for s in signals]
    except ValueError:  # not in the main thread: leave the caller's handlers alone
        yield
        return
    try:
        yield
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
