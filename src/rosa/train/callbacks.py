"""Trainer callbacks of a run: progress bar, metrics.jsonl, and a stop that saves first."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from rosa.common.distributed import any_rank
from rosa.common.formatting import format_bytes
from rosa.common.progress import Throttle, print_line, progress_bar, time_left
from rosa.train.costs import CostMeter


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

    on_evaluate = on_step_end  # requested during validation: not after another step


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


class ProgressReport(TrainerCallback):
    """A bar on a terminal; elsewhere a line for every log, and at least one every 30 seconds."""

    def __init__(self, meter: CostMeter) -> None:
        self._meter = meter
        self._console = Console(stderr=True)
        self._latest: dict[str, Any] = {}  # the newest of each logged value
        self._layers: int | None = None
        self._due = Throttle()
        self._began = (0, 0.0)  # step and time
        self._bar = progress_bar(self._console)

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self._began = (state.global_step, time.perf_counter())
        self._layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
        self._task = self._bar.add_task(
            "training", total=state.max_steps, completed=state.global_step, left="", note=""
        )
        if self._console.is_terminal:
            self._bar.start()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, description="training")

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._report_if_due(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        doing = "saving" if control.should_save else "training"
        doing = "validating" if control.should_evaluate else doing
        now = {"completed": state.global_step, "left": self._time_left(state)}
        self._bar.update(self._task, description=doing, **now)
        if not control.should_log:  # a log is a line of its own
            self._report_if_due(state)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, description="validating")
        self._report_if_due(state, "validating  ")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(self._task, description="saving" if control.should_save else "training")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._print(state, f"saved {args.output_dir}/checkpoint-{state.global_step}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self._latest.update(logs)
        self._bar.update(self._task, note=self._describe())
        if "eval_loss" in logs:
            self._print(state, f"validation loss {logs['eval_loss']:.4f}", above_bar=True)
        elif "loss" in logs:
            self._print(state, self._values(state))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(
            self._task, description="stopped" if state.global_step < state.max_steps else "trained"
        )

    def _report_if_due(self, state: Any, doing: str = "") -> None:
        if self._due():
            self._print(state, doing + self._values(state))

    def _print(self, state: Any, text: str, *, above_bar: bool = False) -> None:
        if above_bar or not self._console.is_terminal:
            self._due.restart()
            print_line(self._console, f"step {state.global_step}/{state.max_steps}  {text}")

    def _values(self, state: Any) -> str:
        """`loss 1.2340  445 tokens/s  15 of 30 layers  lr 9.8e-04  2.1 min left  peak 1.2 GB`."""
        parts = [self._describe()]
        if "learning_rate" in self._latest:
            parts.append(f"lr {self._latest['learning_rate']:.1e}")
        parts.append(self._time_left(state))
        totals = self._meter.totals
        parts.append(f"peak {format_bytes(totals.peak_device_bytes or totals.peak_host_bytes)}")
        return "  ".join(part for part in parts if part)

    def _time_left(self, state: Any) -> str:
        step, began = self._began
        done, remaining = state.global_step - step, state.max_steps - state.global_step
        return time_left(time.perf_counter() - began, done, remaining)

    def _describe(self) -> str:
        """`loss 1.2340  445 tokens/s  15 of 30 layers`, what of it has been logged."""
        logs, parts = self._latest, []
        if "loss" in logs:
            parts.append(f"loss {logs['loss']:.4f}")
        if "tokens_per_second" in logs:
            parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
        if logs.get("dls_selected"):
            of_all = f" of {self._layers}" if self._layers else ""
            parts.append(f"{len(logs['dls_selected'])}{of_all} layers")
        return "  ".join(parts)

    def __enter__(self) -> ProgressReport:
        return self

    def __exit__(self, *_error: object) -> None:
        """Restores the terminal, also after an exception in training."""
        if self._console.is_terminal:
            self._bar.stop()
