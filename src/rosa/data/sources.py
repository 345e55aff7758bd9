"""Where training rows come from: a local file, a built-in toy task, or the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rosa.assets import ASSETS
from rosa.data.row_files import SUFFIXES, read_rows
from rosa.data.tokenization import LocatedRow, check_row
from rosa.errors import RosaError, errors_as

TOY_DATA = ASSETS / "tiny-data"
# The fields of each form of a row.
FORMS = (
    ("instruction", "input", "output"),
    ("prompt", "completion"),
    ("messages", "tools"),
    ("conversations", "system", "tools"),
)
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def toy_tasks() -> list[str]:
    """The names of the training sets that come with the package."""
    return sorted(folder.parent.name for folder in TOY_DATA.glob("*/train.json"))


def check_columns(columns: Mapping[str, str]) -> None:
    """Raises RosaError unless the keys of `columns` are fields of one form of rows."""
    if not any(set(columns) <= set(form) for form in FORMS):
        forms = "; ".join(", ".join(form) for form in FORMS)
        raise RosaError(
            f"columns: {', '.join(columns)} are not fields of one form; the forms are: {forms}"
        )


def is_local(source: str) -> bool:
    """Whether a `data:` entry comes with the package or is a path; else it is a hub id."""
    looks_local = source.lower().endswith(SUFFIXES) or source.startswith((".", "/", "~"))
    return looks_local or source in toy_tasks() or Path(source).exists()


def load_located_rows(
    sources: Sequence[str], columns: Mapping[str, str] | None = None
) -> list[LocatedRow]:
    """The rows of all `data:` entries, each with its source and number (from 1), checked.

    Raises:
        RosaError: as `load_training_rows` and `check_row`.
    """
    rows = [(s, n, row) for s in sources for n, row in enumerate(load_training_rows(s, columns), 1)]
    for source, number, row in rows:
        check_row(row, source, number)
    return rows


def load_training_rows(
    source: str, columns: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """The rows of one `data:` entry of a recipe; ShareGPT's `conversations` become `messages`.

    `columns` maps fields of a form to the columns that hold them in the data.

    Raises:
        RosaError: a file that is missing, unreadable or damaged (with its row), a hub id that
            cannot be loaded, no rows, a column that is not there, or an unknown ShareGPT role.
    """
    rows = _load(source)
    if columns:
        rows = _rename(rows, columns, source)
    return [
        _sharegpt_as_chat(row, f"{source}, row {number}") if row.get("conversations") else row
        for number, row in enumerate(rows, 1)
    ]


def _load(source: str) -> list[dict[str, Any]]:
    if source in toy_tasks():
        return read_rows(TOY_DATA / source / "train.json")
    if is_local(source):
        return read_rows(Path(source).expanduser())
    from datasets import load_dataset

    toys = ", ".join(toy_tasks())
    with errors_as(
        f"the data '{source}' is neither a file nor one of {toys}; loading it from the hub"
    ):
        rows = load_dataset(source, split="train").to_list()
    if not rows:
        raise RosaError(f"the hub data set '{source}' has no rows in its train split")
    return rows


def _rename(
    rows: list[dict[str, Any]], columns: Mapping[str, str], source: str
) -> list[dict[str, Any]]:
    """Rows of the form whose fields `columns` maps; fields of other forms are left out."""
    existing = dict.fromkeys(str(name) for row in rows for name in row)
    for field, column in columns.items():
        if column not in existing:
            raise RosaError(
                f"{source} has no column '{column}', which columns.{field} names; its columns are "
                f"{', '.join(existing)}"
            )
    form = next(form for form in FORMS if set(columns) <= set(form))
    names = {field: columns.get(field, field) for field in form}
    return [{f: row[name] for f, name in names.items() if name in row} for row in rows]


def _sharegpt_as_chat(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row of `conversations` with `messages` in its place; `system`, if any, comes first."""
    turns = row.pop("conversations")
    system = row.pop("system", None)
    if not isinstance(turns, list):
        raise RosaError(f"{where}: `conversations` must be a list of {{from, value}} texts")
    messages = [{"role": "system", "content": system}] if system else []
    return {**row, "messages": messages + [_sharegpt_turn(turn, where) for turn in turns]}


def _sharegpt_turn(turn: Any, where: str) -> dict[str, Any]:
    if isinstance(turn, dict) and "role" in turn:
        return turn
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise RosaError(f"{where}: `conversations` must be a list of {{from, value}} texts")
    role = SHAREGPT_ROLES.get(str(turn["from"]))
    if role is None:
        raise RosaError(
            f"{where}: `conversations` has a turn from {turn['from']!r}; turns are from "
            f"{', '.join(SHAREGPT_ROLES)}"
        )
    return {"role": role, "content": turn["value"]}
