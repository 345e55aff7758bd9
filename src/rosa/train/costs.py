"""What a training run costs: time, memory, energy and size, kept in `costs.json`.

The measures are those of PEFT's own method comparison, of the training loop alone: loading the
model and preparing the data come before. A resumed run continues with the totals in its
checkpoint; work lost to a kill is not part of them.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from rosa.common.environment import device_name
from rosa.common.resources import (
    PeakHostMemory,
    peak_device_memory,
    read_energy,
    reset_peak_device_memory,
)
from rosa.errors import RosaError

COSTS_FILE = "costs.json"


@dataclass(frozen=True)
class Totals:
    """Resources that the training loop has used so far, over all parts of a resumed run.

    Attributes:
        step_seconds: of each optimizer step, without data loading, validation and saving.
        train_seconds: wall time of the loop, validation and saving included.
        tokens: tokens read, without padding.
        peak_host_bytes: resident memory of the process.
        peak_device_bytes: tensors on the GPU; None on a CPU.
        energy_joules: of the whole GPU; None if it cannot be read.
    """

    step_seconds: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    tokens: int = 0
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = 0
    energy_joules: float | None = 0.0

    def __add__(self, later: Totals) -> Totals:
        """Adds a later part. A value that is unknown for one part is unknown for the sum."""
        device = (self.peak_device_bytes, later.peak_device_bytes)
        energy = (self.energy_joules, later.energy_joules)
        return Totals(
            step_seconds=self.step_seconds + later.step_seconds,
            train_seconds=self.train_seconds + later.train_seconds,
            tokens=self.tokens + later.tokens,
            peak_host_bytes=max(self.peak_host_bytes, later.peak_host_bytes),
            peak_device_bytes=None if None in device else max(filter(None, device), default=0),
            energy_joules=None if None in energy else sum(filter(None, energy)),
        )


@dataclass(frozen=True)
class Costs:
    """One run's `costs.json`; sizes in bytes, times in seconds. What is not here is as in `Totals`.

    Attributes:
        trainable: number of trainable parameters, of `total`, by PEFT's rule.
        adapter_bytes: size of adapter_model.safetensors.
        step_seconds_median: of an optimizer step, without data loading, validation and saving.
        tokens_per_second: tokens by the time of those steps.
        peak_host_source: "kernel" (exact) or "samples" (every 20 ms).
        device: name of the GPU or the processor.
        threads: number of PyTorch's CPU threads.
    """

    trainable: int
    total: int
    adapter_bytes: int
    step_seconds_median: float
    tokens_per_second: float
    train_seconds: float
    tokens: int
    peak_host_bytes: int
    peak_host_source: str
    peak_device_bytes: int | None
    energy_joules: float | None
    device: str
    threads: int


class CostMeter(TrainerCallback, ExportableState):
    """Measures a training loop; its totals are part of every checkpoint.

    No callback sees a micro-step's inputs, so the trainer passes its tokens to `count`.
    """

    def __init__(self) -> None:
        self._earlier = Totals()  # the parts before this one
        self._steps: list[float] = []
        self._tokens = 0
        self.host = PeakHostMemory()
        self._begin: float | None = None  # None outside the loop
        self._energy: float | None = None
        self._step_begin = 0.0
        self.device = torch.device("cpu")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores a checkpoint's totals and starts every clock."""
        self.restore(state, args.device)
        # A checkpoint of a run without this callback has no place for its state.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        reset_peak_device_memory(self.device)
        self.host.start()
        self._energy = read_energy(self.device)
        self._begin = time.perf_counter()

    def restore(self, state: Any, device: Any) -> None:
        """Continues with the totals in a Trainer's state; warns if there are none."""
        self.device = device
        if state.global_step:
            stored = state.stateful_callbacks.get(type(self).__name__)
            self._earlier = restored(stored, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_begin = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._steps.append(round(time.perf_counter() - self._step_begin, 6))

    def count(self, tokens: int) -> None:
        """Adds the tokens of a micro-step."""
        self._tokens += tokens

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops every clock."""
        self._earlier, self._begin = self.totals, None

    def __enter__(self) -> CostMeter:
        return self

    def __exit__(self, *_error: object) -> None:
        """Stops sampling memory, also after an exception in training."""
        self.host.stop()

    @property
    def totals(self) -> Totals:
        """Of all parts of the run up to now."""
        if self._begin is None:
            return self._earlier
        energy, before = read_energy(self.device), self._energy
        return self._earlier + Totals(
            step_seconds=list(self._steps),
            train_seconds=time.perf_counter() - self._begin,
            tokens=self._tokens,
            peak_host_bytes=self.host.read(),
            peak_device_bytes=peak_device_memory(self.device),
            energy_joules=None if energy is None or before is None else energy - before,
        )

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into a checkpoint's `trainer_state.json`."""
        return {"args": {}, "attributes": {"totals": asdict(self.totals)}}


def restored(stored: Any, step: int) -> Totals:
    """The totals in a checkpoint's state; warns if there are none."""
    try:
        return Totals(**stored["attributes"]["totals"])
    except (KeyError, TypeError):
        warnings.warn(
            f"the checkpoint of step {step} has no costs: {COSTS_FILE} will count from there",
            stacklevel=2,
        )
        return Totals()


def run_costs(meter: CostMeter, model: Any, folder: Path) -> Costs:
    """The costs of a finished run whose adapter is in `folder`."""
    totals = meter.totals
    trainable, total = model.get_nb_trainable_parameters()
    in_steps = sum(totals.step_seconds)
    return Costs(
        trainable=trainable,
        total=total,
        adapter_bytes=(folder / "adapter_model.safetensors").stat().st_size,
        step_seconds_median=round(statistics.median(totals.step_seconds or [0.0]), 6),
        tokens_per_second=round(totals.tokens / in_steps, 1) if in_steps else 0.0,
        train_seconds=round(totals.train_seconds, 3),
        tokens=totals.tokens,
        peak_host_bytes=totals.peak_host_bytes,
        peak_host_source=meter.host.source,
        peak_device_bytes=totals.peak_device_bytes,
        energy_joules=None if totals.energy_joules is None else round(totals.energy_joules, 3),
        device=device_name(meter.device),
        threads=torch.get_num_threads(),
    )


def write_costs(costs: Costs, folder: Path) -> None:
    """Writes `costs.json` into a run's folder."""
    text = json.dumps(asdict(costs), indent=2, ensure_ascii=False)
    (folder / COSTS_FILE).write_text(text + "\n", encoding="utf-8")


def read_costs(folder: str | Path) -> Costs:
    """The costs of a finished run.

    Raises:
        RosaError: there is no `costs.json`, or it is damaged.
    """
    file = Path(folder) / COSTS_FILE
    try:
        return Costs(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RosaError(f"there is no {file}; `rosa train` writes it when a run ends") from None
    except (OSError, ValueError, TypeError) as error:
        raise RosaError(f"{file} cannot be read ({error}); train again in a new folder") from None
