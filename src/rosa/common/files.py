"""Files that are there whole or not at all, and what a person is told when one cannot be written.

A kill, a full disk or a power cut leaves the old file or the new one, never half of either:
everything that a later run reads is written under another name, brought to the disk, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosa.errors import RosaError

PART = ".part"
_WRITING_FAILED = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
    if hasattr(errno, name)
}
# How libraries that write on their own account report the same.
_SAID_BY_OTHERS = (
    "PytorchStreamWriter failed",
    "file write failed",
    "iostream error",
    "(os error ",
)


def write_whole(file: Path, content: str | bytes) -> None:
    """Replace a file in one step; text becomes UTF-8."""
    part = file.with_name(file.name + PART)
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


def bring_to_disk(folder: Path) -> None:
    """Wait until every file in `folder` is on the disk, so that a rename can vouch for them."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def why_unwritable(folder: Path) -> str | None:
    """Why a folder cannot be made or written into, None where it can; makes nothing."""
    absolute = folder.absolute()
    place = next(p for p in (absolute, *absolute.parents) if p.exists())
    if not place.is_dir():
        return f"{place} is a file"
    # By default the right of the user who started the process is asked, not of who it is now.
    by_whom = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    return None if os.access(place, os.W_OK, **by_whom) else f"{place} cannot be written"


@contextmanager
def told_if_unwritable(folder: Path, cure: Callable[[], str]) -> Iterator[None]:
    """Turns a disk that is full or read-only into a sentence that ends with what `cure()` says.

    Raises:
        RosaError: something in `folder` could not be written.
    """
    try:
        yield
    except Exception as error:
        reason = reason_unwritable(error)
        if reason is None:
            raise
        raise RosaError(f"cannot write to '{folder}': {reason}; {cure()}") from error


def reason_unwritable(error: BaseException) -> str | None:
    """Why a file could not be written; None for an error of another kind."""
    if isinstance(error, RosaError):
        return None
    if isinstance(error, OSError):
        return (error.strerror or str(error)) if error.errno in _WRITING_FAILED else None
    said = " ".join(str(error).split())
    if any(words in said for words in _SAID_BY_OTHERS):
        return f"the disk is full or takes no more ({said[:200]})"
    return None
