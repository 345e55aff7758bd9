"""Commands that tests start: awaited while they make progress, and always terminated.

A launcher puts its processes into sessions of their own, where no signal to its group reaches
them. So whatever descends from a command is known by a mark in its environment, and is killed at
the end of the block that started it, or, where the tests themselves are killed, by a guard.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
# Seconds without a word after which commands are taken to hang. They say something every few
# seconds, so this holds on a machine that is a hundred times as busy.
PATIENCE = 300.0
MARK = "ROSA_TESTS"
SESSION = uuid.uuid4().hex

# A shell without job control lets what it starts in the background ignore Ctrl-C, and so would
# every command that a test wants to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Command:
    """A started command; what it prints goes to a file, so that it never waits for a reader."""

    def __init__(self, words: list[str], folder: str, **environment: str) -> None:
        self.mark = f"{SESSION}-{uuid.uuid4().hex}"
        self._output = Path(folder, "output.txt")
        with self._output.open("wb") as stream:
            self.process: subprocess.Popen[Any] = subprocess.Popen(
                words,
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its group can be signalled as a terminal does
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, MARK: self.mark},
            )

    def said(self) -> str:
        """Everything printed so far."""
        return self._output.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def running(words: list[str], **environment: str) -> Iterator[Command]:
    """A command in the repository's root; nothing that descends from it outlives the block."""
    _guard()
    with tempfile.TemporaryDirectory() as folder:
        command = Command(words, folder, **environment)
        try:
            yield command
        finally:
            end_all(command.mark)
            command.process.wait()


def wait_for(*commands: Command, until: Callable[[], bool] | None = None) -> None:
    """Returns once all of `commands` have ended, or `until` is true.

    Raises:
        AssertionError: none of them said anything for `PATIENCE` seconds, or all ended, or one
            failed, before `until` was true.
    """
    said, since = -1, time.monotonic()
    while not (until() if until else all(c.process.poll() is not None for c in commands)):
        texts = [command.said() for command in commands]
        assert until is None or all(c.process.poll() is None for c in commands), texts
        if (length := sum(map(len, texts))) != said:
            said, since = length, time.monotonic()
        silent = time.monotonic() - since
        assert silent < PATIENCE, "\n".join([f"they hang: silent for {silent:.0f} s", *texts])
        time.sleep(0.05)


def output_of(words: list[str], code: int = 0, **environment: str) -> str:
    """What a command prints that ends with exit code `code`."""
    with running(words, **environment) as command:
        wait_for(command)
        assert command.process.returncode == code, command.said()
        return command.said()


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that descend from a command, or, by `SESSION`, from any."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # gone meanwhile, or not ours
            if process.environ().get(MARK, "").startswith(mark):
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def end_all(mark: str) -> None:
    """Kills what descends from a command until nothing is left, also what begins meanwhile."""
    while left := marked(mark):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


@functools.cache
def _guard() -> subprocess.Popen[Any]:
    """Ends what is left of this session's commands once the tests are gone, however they went."""
    # Reads from a pipe that closes with this process; its own session is out of Ctrl-C's reach.
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.processes", SESSION],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


if __name__ == "__main__":
    sys.stdin.read()
    end_all(sys.argv[1])
