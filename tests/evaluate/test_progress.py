"""What an evaluation says while it goes, and of answers that it cannot read."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from rosa.evaluate import progress
from rosa.evaluate.progress import AnswerProgress
from rosa.evaluate.requests import unparsable_note
from rosa.evaluate.tasks import built_in_tasks


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, width: int) -> io.StringIO:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, legacy_windows=False)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    return stream


def test_without_a_terminal_there_is_an_unwrapped_line_every_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("rosa.common.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr("rosa.evaluate.progress.time.perf_counter", lambda: now[0])
    stream = shown(monkeypatch, terminal=False, width=30)
    with AnswerProgress(500, torch.device("cpu"), shown=True) as answers:
        answers.advance("BoolQ", 100, 0.0, asked=False)  # those of an earlier run take no time
        for _ in range(6):
            now[0] += 10
            answers.advance("BoolQ", 10, 121.4)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[:4] for line in lines] == [
        ["BoolQ", "130/500 answers", "121 tokens/s", "6.2 min left"],
        ["BoolQ", "160/500 answers", "121 tokens/s", "5.7 min left"],
    ]
    assert all("peak" in line for line in lines)


def test_on_a_terminal_answers_time_and_speed_stay_on_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = shown(monkeypatch, terminal=True, width=70)
    with AnswerProgress(500, torch.device("cpu"), shown=True) as answers:
        answers.advance("ARC-Challenge", 16, 121.4)
        answers.print("BoolQ: 3 of 4 answers are correct")
    text = stream.getvalue()
    assert "3 of 4" in text
    assert "16/500" in text
    assert " left" in text
    assert "121 tokens/s" in text


def test_nothing_is_printed_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with AnswerProgress(5, torch.device("cpu"), shown=False) as answers:
        answers.advance("BoolQ", 5, 1.0)
        answers.print("done")
    assert capsys.readouterr() == ("", "")


def test_answers_that_cannot_be_read_are_counted_shown_and_explained() -> None:
    task = built_in_tasks()["boolq"]
    said = ["true", "I think\nso", "", "no", "yes"]
    records = [task.judged({"response": text, "label": "true"}) for text in said]
    note = unparsable_note(task, records)
    assert note is not None
    for part in ("4 of 5 responses (80 %)", "'I think so'", "Alpaca's", "--prompt chat"):
        assert part in note
    assert unparsable_note(task, records[:2]) is None  # half of them
    assert unparsable_note(task, []) is None
