"""Folders that a command is to write into."""

from __future__ import annotations

import os
from pathlib import Path

from rosa.errors import RosaError


def check_folder(path: Path, option: str = "--out") -> None:
    """Whether the folder is there or can be made, and written into; makes nothing.

    Raises:
        RosaError: it cannot; names the option that it came from.
    """
    absolute = path.absolute()
    existing = next(place for place in (absolute, *absolute.parents) if place.exists())
    if not existing.is_dir():
        what = "is" if existing == absolute else f"lies in {existing}, which is"
        raise RosaError(f"{option} {path} {what} a file; name a folder")
    if not os.access(existing, os.W_OK):
        raise RosaError(f"{option} {path} cannot be written; name another folder")
