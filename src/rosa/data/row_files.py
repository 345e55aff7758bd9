"""Rows of a local JSON or JSONL file, with errors that name the file and the row (from 1)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rosa.data.not_json import describe_binary, describe_text
from rosa.errors import RosaError


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of `path`: a JSON array of objects, or JSONL (one object per line).

    The content decides, not the file's suffix. Blank lines of a JSONL file are skipped.
    Raises RosaError naming the file, and the row, for a missing or unreadable file, bad JSON, a
    row that is not an object, and a file without rows.
    """
    text = read_text(Path(path))
    if text.lstrip().startswith("["):
        rows = _parse_array(text, path)
    else:
        if kind := describe_text(text):
            raise RosaError(f"{path} {kind}")
        # Split at newlines only: str.splitlines would also cut at U+2028 inside a JSON string.
        lines = enumerate(text.split("\n"), 1)
        rows = [_parse_line(line, path, number) for number, line in lines if line.strip()]
    if not rows:
        raise RosaError(f"{path} has no rows; give a file with at least one example")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise RosaError(
                f"{path}, row {number}: expected an object with named fields, found "
                f"{type(row).__name__}"
            )
    return rows


def read_text(path: Path) -> str:
    """The content of a UTF-8 file. Raises RosaError for one that is missing or unreadable."""
    if path.is_dir():
        raise RosaError(f"{path} is a folder; give a file")
    try:
        with path.open("rb") as stream:
            kind = describe_binary(stream.read(16))
        if kind:
            raise RosaError(f"{path} {kind}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RosaError(f"there is no data file {path}; check the path") from None
    except UnicodeDecodeError as error:
        raise RosaError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise RosaError(f"cannot read {path}: {error.strerror or error}") from None


def text_field(row: dict[str, Any], field: str, path: str | Path, number: int) -> str:
    """`row[field]`, which must exist and be a string. `number` counts rows from 1."""
    if field not in row:
        fields = ", ".join(sorted(map(str, row))) or "none"
        raise RosaError(f"{path}, row {number}: the field '{field}' is missing (fields: {fields})")
    value = row[field]
    if not isinstance(value, str):
        raise RosaError(
            f"{path}, row {number}: the field '{field}' must be text, found "
            f"{type(value).__name__} {value!r:.60}"
        )
    check_text(value, f"{path}, row {number}: the field '{field}'")
    return value


def optional_text_field(row: dict[str, Any], field: str, path: str | Path, number: int) -> str:
    """`row[field]`, "" where it is absent, null, NaN or blank; other values must be text."""
    value = row.get(field)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = text_field(row, field, path, number)
    return text if text.strip() else ""


def check_text(text: str, what: str) -> None:
    """Raises RosaError, beginning with `what`, for text that has no UTF-8 (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RosaError(
            f"{what} holds half of a surrogate pair ({text[error.start]!r}), which is not a "
            "character; correct or remove that row"
        ) from None


def _parse_line(line: str, path: str | Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise _bad_json(path, number, f"{error.msg} at column {error.colno}") from None


def _parse_array(text: str, path: str | Path) -> list[Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise _bad_json(path, _first_bad_row(text), where) from None


def _bad_json(path: str | Path, number: int, where: str) -> RosaError:
    return RosaError(f"{path}, row {number}: bad JSON ({where}); correct or remove that row")


def _first_bad_row(text: str) -> int:
    """The number, from 1, of the first row of a damaged JSON array that cannot be parsed."""
    decoder, number = json.JSONDecoder(), 1
    position = text.index("[") + 1
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        try:
            _, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            return number
        number += 1
