"""Checks that the training files of a grid are the expected ones, by their SHA-256."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from rosa.compare.grid import TrainingSet
from rosa.errors import RosaError


def check_training_files(
    sets: dict[str, TrainingSet], *, any_data: bool = False
) -> dict[str, TrainingSet]:
    """The training sets by name, each `sha256` checked against its file.

    With `any_data` another file is accepted as a stand-in: the set's name, and with it every table,
    then says so, and its `sha256` becomes that of the file.

    Raises:
        RosaError: a file that cannot be read, or one with another hash unless `any_data`.
    """
    checked = {}
    for name, train_set in sets.items():
        found = None if train_set.sha256 is None else _file_hash(name, train_set)
        if found == train_set.sha256:
            checked[name] = train_set
        elif any_data:
            checked[f"{name} (stand-in)"] = replace(train_set, sha256=found)
        else:
            raise RosaError(
                f"{train_set.data} is not the file of {name}: its SHA-256 is {found}, and should "
                f"be {train_set.sha256}; use that file (`rosa reproduce --any_data` accepts "
                "another one and marks it as a stand-in in every table)"
            )
    return checked


def _file_hash(name: str, train_set: TrainingSet) -> str:
    try:
        return hashlib.sha256(Path(str(train_set.data)).expanduser().read_bytes()).hexdigest()
    except OSError as error:
        raise RosaError(
            f"training_sets.{name}: sha256 is of one local file, but {train_set.data} cannot be "
            f"read: {error.strerror}"
        ) from None
