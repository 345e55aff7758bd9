"""Runs in processes of their own that may be killed, or watched at every change of their folder.

A forked server holds the libraries, so that a run starts in a moment.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rosa.evaluate.run
import rosa.train.run  # noqa: F401
from rosa.cli.main import main

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.support.kill_runs"])


def run(
    command: Sequence[str],
    log: Path,
    *,
    kill_after: float | None = None,
    once: Callable[[], object] = lambda: True,
) -> int | None:
    """`rosa COMMAND` in a new process; its exit code, or None if it was killed.

    Args:
        command: its words, without `rosa`.
        log: gets what the command prints, and how long it took.
        kill_after: seconds from its first instruction to SIGKILL; None lets it end.
        once: the seconds count from the moment when this is true.
    """
    begun = _PROCESSES.Event()
    process: Any = _PROCESSES.Process(target=_command, args=(list(command), log, begun))
    process.start()
    if kill_after is not None:
        begun.wait()
        while process.exitcode is None and not once():
            time.sleep(0.002)
    process.join(kill_after)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


def run_on_a_filling_disk(command: Sequence[str], log: Path, at: str, size: int) -> int | None:
    """`rosa COMMAND`; once it makes a folder `at`, no file can grow beyond `size` bytes."""
    process: Any = _PROCESSES.Process(target=_filling, args=(list(command), log, at, size))
    process.start()
    process.join()
    return process.exitcode


def seconds_of(log: Path) -> float:
    """How long the last command took that wrote into this log."""
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    return float(last.split(" after ")[1].split()[0])


def run_watched(command: Sequence[str], log: Path, folder: Path, states: Path) -> int | None:
    """`rosa COMMAND`, with a copy of `folder` in `states` before each change of a file in it.

    The copies 0000, 0001, ... are what a SIGKILL at these moments would leave.
    """
    process: Any = _PROCESSES.Process(target=_watched, args=(list(command), log, folder, states))
    process.start()
    process.join()
    return process.exitcode


def _command(command: list[str], log: Path, begun: Any = None) -> None:
    if begun is not None:
        begun.set()
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        start = time.perf_counter()
        code = main(command)
        stream.write(f"exit {code} after {time.perf_counter() - start:.2f} s\n")
    sys.exit(code)


def _watched(command: list[str], log: Path, folder: Path, states: Path) -> None:
    sys.addaudithook(_photographer(folder, states))
    _command(command, log)


def _filling(command: list[str], log: Path, at: str, size: int) -> None:
    import resource

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and Path(args[0]).name == at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    sys.addaudithook(hook)
    _command(command, log)


def _photographer(folder: Path, states: Path) -> Callable[[str, tuple[Any, ...]], None]:
    inside = str(folder)
    busy, count = False, 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy, count
        if busy or not args or not isinstance(args[0], (str, os.PathLike)):
            return
        writes = event == "open" and args[2] and args[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not os.fspath(args[0]).startswith(inside):
            return
        busy = True
        if folder.is_dir():
            shutil.copytree(folder, states / f"{count:04}")
        else:
            (states / f"{count:04}").mkdir(parents=True)
        count += 1
        busy = False

    return hook
