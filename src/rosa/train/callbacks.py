"""Trainer callbacks of a run: progress bar, metrics.jsonl, and a stop that saves first."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback

from rosa.common.distributed import any_rank


class StopOnSignal(TrainerCallback):
    """Ends the run after the present step, with a checkpoint, once `requested` is set.

    All processes stop after the same step, whichever of them received the signal.
    """

    def __init__(self) -> None:
        self.requested = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if any_rank(self.requested) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control


class MetricsWriter(TrainerCallback):
    """Appends every log of the Trainer to `metrics.jsonl`, with the speed since the last one."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._time = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._time = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            now, tokens = time.perf_counter(), logs.get("num_tokens", 0.0)
            speed = (tokens - self._tokens) / max(now - self._time, 1e-9)
            logs["tokens_per_second"] = round(speed, 1)  # for the callbacks after this one too
            self._tokens, self._time = tokens, now
        record = {"step": state.global_step, **logs}
        with (Path(args.output_dir) / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


class Progress(TrainerCallback):
    """A bar with loss, tokens per second and chosen layers; lines where there is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._latest: dict[str, Any] = {}  # the bar shows the newest of each value
        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._task = self._bar.add_task(
            "train", total=state.max_steps, completed=state.global_step, note=""
        )
        if self._console.is_terminal:
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        note = _describe(logs)
        if not note:
            return
        self._latest.update(logs)
        self._bar.update(self._task, note=_describe(self._latest))
        if not self._console.is_terminal:
            self._console.print(f"step {state.global_step}/{state.max_steps}  {note}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_error: object) -> None:
        """Restores the terminal, also after an exception in training."""
        if self._console.is_terminal:
            self._bar.stop()


def _describe(logs: dict[str, Any]) -> str:
    """A log as text: `loss 1.234  8,000 tokens/s  layers 0 3 5`."""
    parts = []
    for key, text in (("loss", "loss {:.4f}"), ("eval_loss", "validation loss {:.4f}")):
        if key in logs:
            parts.append(text.format(logs[key]))
    if "tokens_per_second" in logs:
        parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if parts and logs.get("dls_selected"):
        parts.append(f"layers {logs['dls_selected']}")
    return "  ".join(parts)
