"""One process per output folder: a lock that goes with its process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rosa.errors import RosaError

LOCK = ".lock"


@contextmanager
def folder_in_use(folder: Path) -> Iterator[None]:
    """Makes the folder where it is missing, and holds it for this process.

    Raises:
        RosaError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise RosaError(
            f"the folder '{folder}' is in use by a run that is going on; wait for it, stop it, or "
            "name another folder"
        ) from None
    except OSError as error:
        raise RosaError(
            f"the folder '{folder}' cannot be written: {error.strerror or error}"
        ) from None
    try:
        yield
    finally:
        lock.release()
