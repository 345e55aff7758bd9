"""Folders that a command is to write into."""

from __future__ import annotations

from pathlib import Path

from rosa.common.files import unwritable_reason
from rosa.errors import RosaError


def check_folder(path: Path, option: str = "--out") -> None:
    """Whether the folder is there or can be made, and written into; makes nothing.

    Raises:
        RosaError: it cannot; names the option that it came from.
    """
    if why := unwritable_reason(path):
        raise RosaError(f"{option} {path}: {why}; name another folder")
