"""The processes of one training run: ranks, what only rank 0 does, and each rank's share of a step.

    accelerate launch --num_processes 2 -m rosa train RECIPE.yaml

Each rank computes on its part of every step's rows; only rank 0, the main process, writes files and
prints. In a single process nothing here has an effect, and PyTorch is not imported.

`run_on_main_process`, `broadcast_from_rank0` and `any_rank` are collectives: every rank calls them
at the same point of the program.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rosa.errors import RosaError

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
# How long a step and a checkpoint may take once the launcher is gone. A rank that waits for another
# one then receives no other signal.
STOP_SECONDS = 600.0


class StepShare(NamedTuple):
    """One rank's share of an optimizer step: rows per micro-batch, and micro-batches."""

    batch_size: int
    gradient_accumulation: int


def is_initialized() -> bool:
    """Whether a torch.distributed process group exists, of one process or many."""
    torch = sys.modules.get("torch")  # where it is not imported there is no group
    return bool(torch and torch.distributed.is_available() and torch.distributed.is_initialized())


def world_size(group: Any = None) -> int:
    """Number of processes in `group`, or before there are groups, that the launcher started."""
    if is_initialized():
        return sys.modules["torch"].distributed.get_world_size(group)
    return _from_launcher("WORLD_SIZE", 1)


def is_main_process() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return _from_launcher("RANK", 0) == 0


def split_step(batch_size: int, gradient_accumulation: int, processes: int) -> StepShare:
    """One rank's share of the rows of an optimizer step.

    However many processes train, a step has `batch_size * gradient_accumulation` rows, so that a
    recipe gives the same result in all of them; no micro-batch is larger than `batch_size`.
    """
    rows = batch_size * gradient_accumulation
    if rows % processes:
        raise RosaError(
            f"batch_size {batch_size} x gradient_accumulation {gradient_accumulation} = {rows} "
            f"rows per step cannot be divided evenly among {processes} processes; make it a "
            f"multiple of {processes}"
        )
    per_rank = rows // processes
    largest = max(n for n in range(1, batch_size + 1) if per_rank % n == 0)
    return StepShare(largest, per_rank // largest)


def init_process_group(use_cpu: bool) -> None:
    """Connect the processes that the launcher started, each with a GPU of its own if there are."""
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=use_cpu)


def stop_with_launcher() -> None:
    """Save and end this process once torchrun, which started it, has been killed.

    It would train on otherwise. `accelerate launch` uses torchrun too; there is no effect else.
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


def run_on_main_process(function: Callable[[], Result]) -> Result:
    """Call `function` on rank 0 and return its result on all ranks; an error ends them all."""
    if world_size() == 1:
        return function()
    from accelerate.utils import broadcast_object_list, wait_for_everyone

    wait_for_everyone()
    results = [function() if is_main_process() else None]
    broadcast_object_list(results)
    return results[0]  # type: ignore[return-value]


def broadcast_from_rank0(
    values: Sequence[float], device: str | torch.device, group: Any = None
) -> list[float]:
    """The `values` of the first rank of `group`, bit for bit, sent through `device`."""
    if world_size(group) == 1:
        return list(values)
    import torch

    sent = torch.tensor(values, dtype=torch.float64, device=device)
    first = 0 if group is None else torch.distributed.get_global_rank(group, 0)
    torch.distributed.broadcast(sent, first, group)
    return sent.tolist()


def any_rank(flag: bool, device: str | torch.device | None = None, group: Any = None) -> bool:
    """Whether `flag` is set on at least one rank of `group`; `device` as Accelerate's if None."""
    if world_size(group) == 1:
        return flag
    import torch
    from accelerate import PartialState

    flags = torch.tensor(float(flag), device=device or PartialState().device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=group)
    return bool(flags)


def _from_launcher(variable: str, default: int) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isdigit() else default
