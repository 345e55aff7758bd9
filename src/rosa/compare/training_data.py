"""Whether the training sets of a grid are the files they should be, by their SHA-256."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from rosa.compare.grid import TrainingSet
from rosa.errors import RosaError

STAND_IN = "{} (stand-in)"


def verified(sets: dict[str, TrainingSet], *, any_data: bool = False) -> dict[str, TrainingSet]:
    """The training sets, each with a `sha256` checked against its file.

    Args:
        sets: by name, as a grid's `training_sets`.
        any_data: accept another file as a stand-in. The set's name then says so, and with it every
            table; its `sha256` becomes that of the file.

    Raises:
        RosaError: a file that cannot be read, or one with another hash, unless `any_data`.
    """
    checked = {}
    for name, train_set in sets.items():
        found = None if train_set.sha256 is None else file_hash(name, train_set)
        if found == train_set.sha256:
            checked[name] = train_set
        elif any_data:
            checked[STAND_IN.format(name)] = dataclasses.replace(train_set, sha256=found)
        else:
            raise RosaError(
                f"{train_set.data} is not the file that {name} means: its SHA-256 is {found}, that "
                f"of {name} is {train_set.sha256}; use that file (`rosa reproduce --any_data` "
                "takes another one and calls it a stand-in in every table)"
            )
    return checked


def file_hash(name: str, train_set: TrainingSet) -> str:
    """SHA-256 of the file that a training set names, in hexadecimal."""
    if not isinstance(train_set.data, str):
        raise RosaError(f"training_sets.{name}: sha256 is that of one file, and data names several")
    try:
        return hashlib.sha256(Path(train_set.data).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise RosaError(
            f"training_sets.{name}: sha256 is that of a local file, and {train_set.data} cannot be "
            f"read: {error.strerror}"
        ) from None
