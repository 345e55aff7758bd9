"""The commands that tests start: none survives, and a hang differs from a slow machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import processes
from tests.support.processes import ROOT, marked, output_of, running, wait_for

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sessions and SIGKILL are POSIX")
SLEEPS = ["sleep", "600"]
# A launcher that is gone, and what it started in a session of its own.
LEAVES_ONE_BEHIND = [
    sys.executable,
    "-c",
    f"import subprocess; subprocess.Popen({SLEEPS!r}, start_new_session=True); print('started')",
]


def test_nothing_outlives_the_block() -> None:
    with running(LEAVES_ONE_BEHIND) as command:
        wait_for(command)
        assert len(marked(command.mark)) == 1
    assert marked(command.mark) == []


def test_nothing_outlives_tests_that_are_killed() -> None:
    code = f"""
import os, signal
from tests.support.processes import running, wait_for
with running({LEAVES_ONE_BEHIND!r}) as command:
    wait_for(command)
    print(command.mark, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    mark = done.stdout.strip()
    wait_for(until=lambda: not marked(mark))
    assert marked(mark) == []


def test_silence_is_a_hang_and_words_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 1.0)
    begun = time.monotonic()
    speaks = "for i in 1 2 3 4 5 6; do echo $i; sleep 0.25; done"
    assert output_of(["sh", "-c", speaks]).split() == [*"123456"]
    assert time.monotonic() - begun > processes.PATIENCE
    with pytest.raises(AssertionError, match="silent for 1 s"), running(SLEEPS) as command:
        wait_for(command)
    assert command.process.returncode == -signal.SIGKILL


def test_an_end_before_the_awaited_and_another_exit_code_are_failures() -> None:
    over = [sys.executable, "-c", "print('over')"]
    with pytest.raises(AssertionError, match="over"), running(over) as command:
        wait_for(command, until=lambda: False)
    with pytest.raises(AssertionError, match="no such"):
        output_of([sys.executable, "-c", "raise SystemExit('no such')"])


def test_the_commands_of_others_are_left_alone() -> None:
    with running(SLEEPS) as one, running(SLEEPS) as other:
        processes.end_all(one.mark)
        one.process.wait()
        assert [p.pid for p in marked(other.mark)] == [other.process.pid]
        os.kill(other.process.pid, 0)
