"""The processes that train one recipe together: who writes, and how they share a step's rows.

    accelerate launch --num_processes 2 -m rosa train RECIPE.yaml

starts the same program twice. Each process computes on its part of every step's rows; only the
first one writes files and talks to the person. In one process nothing here does anything.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from rosa.errors import RosaError

Result = TypeVar("Result")
# How long a step and a checkpoint may take once the launcher is gone. A process that waits for
# another one then hears no other signal.
STOP_SECONDS = 600.0


class Share(NamedTuple):
    """What one process does of an optimizer step: rows per micro-step, and micro-steps."""

    batch_size: int
    gradient_accumulation: int


def team_size() -> int:
    """How many processes the launcher started."""
    return _launched("WORLD_SIZE", 1)


def is_first() -> bool:
    """Whether this process writes files and talks to the person."""
    return _launched("RANK", 0) == 0


def share_of(batch_size: int, gradient_accumulation: int, processes: int) -> Share:
    """One process's part of the rows of a step, in micro-steps of at most `batch_size` rows.

    However many processes train, a step has `batch_size · gradient_accumulation` rows, so that a
    recipe means the same in all of them.

    Raises:
        RosaError: these rows cannot be shared out evenly.
    """
    rows = batch_size * gradient_accumulation
    if rows % processes:
        raise RosaError(
            f"batch_size {batch_size} x gradient_accumulation {gradient_accumulation} = {rows} "
            f"rows a step cannot be shared out evenly among {processes} processes; make it a "
            f"multiple of {processes}"
        )
    mine = rows // processes
    largest = max(n for n in range(1, batch_size + 1) if mine % n == 0)
    return Share(largest, mine // largest)


def connect(use_cpu: bool) -> None:
    """Lets the processes find each other, and gives each its own GPU where there are any."""
    if team_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=use_cpu)


def stop_with_launcher() -> None:
    """Saves and ends this process once torchrun, which started it, was killed.

    torchrun, which `accelerate launch` uses too, ends its processes itself where it still can; else
    they would train on with nobody to stop them. Does nothing under other launchers.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def by_the_first(act: Callable[[], Result]) -> Result:
    """What `act` returns in the first process, for all; they wait for each other before and after.

    An error there ends the first process, and the launcher the others.
    """
    if team_size() == 1:
        return act()
    from accelerate.utils import broadcast_object_list, wait_for_everyone

    wait_for_everyone()
    results = [act() if is_first() else None]
    broadcast_object_list(results)
    return results[0]  # type: ignore[return-value]


def any_says(flag: bool) -> bool:
    """Whether `flag` is set in one process at least; all of them ask at the same point."""
    if team_size() == 1:
        return flag
    from accelerate import PartialState

    from rosa.common.collectives import any_of

    return any_of(flag, PartialState().device)


def _launched(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else default
