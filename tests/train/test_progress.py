"""What a run says of itself while it goes, on a terminal and without one."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console
from transformers import LlamaConfig

from rosa.train import callbacks
from rosa.train.callbacks import ProgressReport, StopOnSignal
from rosa.train.costs import CostMeter

LOGS = {
    "loss": 1.23456,
    "learning_rate": 9.8e-4,
    "tokens_per_second": 445.2,
    "dls_selected": list(range(15)),
}


def report(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int = 100):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, legacy_windows=False)
    monkeypatch.setattr(callbacks, "Console", lambda **_: console)
    progress = ProgressReport(CostMeter())
    state = SimpleNamespace(global_step=0, max_steps=400)
    control = SimpleNamespace(should_save=False, should_evaluate=False, should_log=False)
    args = SimpleNamespace(output_dir="runs/[/x]")  # nothing of it is markup
    model = SimpleNamespace(config=LlamaConfig(num_hidden_layers=30))
    progress.on_train_begin(args, state, control, model=model)
    return progress, args, state, control, stream


def bar_at_step_120(monkeypatch: pytest.MonkeyPatch, width: int) -> str:
    """The last line that the bar draws, without its colors."""
    progress, args, state, control, stream = report(monkeypatch, terminal=True, width=width)
    with progress:
        state.global_step = 120
        progress.on_step_end(args, state, control)
        progress.on_log(args, state, control, logs=LOGS)
        progress._bar.refresh()
    last = [line for line in re.split(r"[\r\n]", stream.getvalue()) if "120/400" in line][-1]
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", last)


def test_step_time_and_loss_stay_on_a_line_of_a_hundred_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = bar_at_step_120(monkeypatch, width=100)
    for part in ("training", "120/400", "loss 1.2346", "445 tokens/s", "15 of 30 layers"):
        assert part in text
    assert re.search(r"\d+ (ms|s|min|h) left", text)


def test_on_a_narrow_terminal_the_bar_and_the_end_of_the_note_go_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = bar_at_step_120(monkeypatch, width=60)
    assert text.startswith("training")
    assert re.search(r"120/400 +[\d.]+ (ms|s|min|h) left +loss 1.2346", text)


def test_without_a_terminal_a_log_is_one_unwrapped_line(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, args, state, control, stream = report(monkeypatch, terminal=False, width=40)
    state.global_step = 40
    progress.on_step_end(args, state, control)
    progress.on_log(args, state, control, logs=LOGS)
    (line,) = stream.getvalue().splitlines()
    start = "step 40/400  loss 1.2346  445 tokens/s  15 of 30 layers  lr 9.8e-04  "
    assert line.startswith(start)
    assert re.search(r"\d+ (ms|s|min|h) left  peak \d", line)


def test_between_logs_there_is_a_line_every_thirty_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("rosa.common.progress.time.monotonic", lambda: now[0])
    progress, args, state, control, stream = report(monkeypatch, terminal=False)
    for step in range(1, 10):
        state.global_step, now[0] = step, now[0] + 12
        progress.on_step_end(args, state, control)
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == [
        "3/400",
        "6/400",
        "9/400",
    ]
    now[0] += 31
    progress.on_prediction_step(args, state, control)
    assert "validating" in stream.getvalue().splitlines()[-1]
    progress.on_log(args, state, control, logs={"eval_loss": 0.5})
    progress.on_save(args, state, control)
    assert stream.getvalue().splitlines()[-2:] == [
        "step 9/400  validation loss 0.5000",
        "step 9/400  saved runs/[/x]/checkpoint-9",
    ]


def test_what_is_being_done_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, args, state, control, stream = report(monkeypatch, terminal=True)
    named = lambda: progress._bar.tasks[0].description  # noqa: E731
    with progress:
        control.should_evaluate = control.should_save = True
        progress.on_step_end(args, state, control)
        assert named() == "validating"
        progress.on_log(args, state, control, logs={"eval_loss": 0.5})
        assert "step 0/400  validation loss 0.5000" in stream.getvalue()
        progress.on_evaluate(args, state, control)
        assert named() == "saving"
        progress.on_step_begin(args, state, control)
        assert named() == "training"


def test_a_stop_requested_during_validation_does_not_wait_for_another_step() -> None:
    stopper = StopOnSignal()
    state = SimpleNamespace(global_step=6, max_steps=60)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    stopper.on_step_end(None, state, control)
    assert not control.should_training_stop
    stopper.requested = True
    stopper.on_evaluate(None, state, control)
    assert control.should_save
    assert control.should_training_stop
