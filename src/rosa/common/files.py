"""Atomic writes, a lock per output folder, and disk errors as `RosaError`s.

A kill, a full disk or a power cut leaves the old file or the new one, never half of either:
everything that a later run reads is written under another name, synced to the disk, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosa.errors import RosaError

LOCK_FILE = ".lock"
PARTIAL_SUFFIX = ".part"
_WRITE_ERRORS = {
    getattr(errno, name, None)  # Windows has no EDQUOT
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
}
# Libraries that write without Python report a full disk in errors of their own.
LIBRARY_ERROR_MARKERS = (
    "PytorchStreamWriter failed",
    "file write failed",
    "iostream error",
    "(os error ",
)


def atomic_write(file: Path, content: str | bytes) -> None:
    """Replace a file in one step; text becomes UTF-8."""
    part = file.with_name(file.name + PARTIAL_SUFFIX)
    with part.open("wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def read_jsonl(file: Path, *, partial: bool = False) -> list[dict[str, Any]]:
    """The records of a JSONL file; none if it does not exist.

    `partial`: the file is still being written, so leave out a line without its line break.
    """
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")  # splitlines would split at U+2028 too
    return [json.loads(line) for line in (lines[:-1] if partial else lines) if line]


def fsync_tree(folder: Path) -> None:
    """Sync every file in `folder` to the disk, so that the folder can then be renamed safely."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())
    if os.name == "posix":  # Windows cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path, option: str = "--out") -> None:
    """Raise a `RosaError` that names `option` if a folder cannot be created or written to."""
    absolute = folder.absolute()
    existing = next(p for p in (absolute, *absolute.parents) if p.exists())
    # By default os.access checks the real user, not the effective one.
    as_user = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    if not existing.is_dir():
        raise RosaError(f"{option} {folder}: {existing} is a file; use another folder")
    if not os.access(existing, os.W_OK, **as_user):
        raise RosaError(f"{option} {folder}: {existing} cannot be written; use another folder")


def check_new_folder(out: Path) -> None:
    """Raise a `RosaError` unless `out` is absent or an empty folder, and can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RosaError(f"the output folder {out} exists and is not empty; name a new folder")
    check_writable(out, "the output folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` (absent or empty) when the block ends without error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        translate_disk_errors(out, lambda: "nothing was written; free some space or name another"),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary,
    ):
        part = Path(temporary) / out.name
        part.mkdir()
        yield part
        fsync_tree(part)
        if out.exists():  # empty; Windows replaces no folder
            out.rmdir()
        part.replace(out)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create the folder if it is missing, and lock it against other processes."""
    from filelock import FileLock, Timeout  # takes 80 ms

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK_FILE, timeout=0)
        lock.acquire()
    except Timeout:
        raise RosaError(
            f"another run is using the folder '{folder}'; wait for it, stop it, or use another"
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise RosaError(f"the folder '{folder}' cannot be written: {reason}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def translate_disk_errors(folder: Path, hint: Callable[[], str]) -> Iterator[None]:
    """Raise a full or read-only disk as a `RosaError` that ends with `hint()`."""
    try:
        yield
    except Exception as error:
        reason = _disk_error_reason(error)
        if reason is None:
            raise
        raise RosaError(f"cannot write to '{folder}': {reason}; {hint()}") from error


def _disk_error_reason(error: Exception) -> str | None:
    """Why a file could not be written; None for an error of another kind."""
    if isinstance(error, OSError):
        return (error.strerror or str(error)) if error.errno in _WRITE_ERRORS else None
    text = " ".join(str(error).split())
    if not isinstance(error, RosaError) and any(m in text for m in LIBRARY_ERROR_MARKERS):
        return f"the disk is full ({text[:200]})"
    return None
