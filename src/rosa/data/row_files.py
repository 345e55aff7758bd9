"""Rows of a local file, with errors that name the file and the row (from 1)."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rosa.data.not_json import describe_binary, describe_text
from rosa.errors import RosaError, errors_as

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".json", ".jsonl", *DELIMITERS, ".parquet")


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of `path`: CSV, TSV or Parquet by its suffix, any other file JSON or JSONL.

    JSON is an array of objects, JSONL one object per line; the content decides, and blank lines
    are skipped. The first line of a CSV file names the columns, whose values are all text.
    Raises RosaError naming the file, and the row, for a missing, unreadable or damaged file, a
    row that is not an object, and a file without rows.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        rows = _read_parquet(file)
    elif suffix in DELIMITERS:
        rows = _parse_csv(read_text(file), file, DELIMITERS[suffix])
    else:
        rows = _parse_json(read_text(file), path)
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
    with _reading(path):
        with path.open("rb") as stream:
            kind = describe_binary(stream.read(16))
        if kind:
            raise RosaError(f"{path} {kind}")
        try:
            return path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise RosaError(
                f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
            ) from None


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


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raises RosaError for a file that is missing, a folder or not readable."""
    if path.is_dir():
        raise RosaError(f"{path} is a folder; give a file")
    try:
        yield
    except FileNotFoundError:
        raise RosaError(f"there is no data file {path}; check the path") from None
    except OSError as error:
        raise RosaError(f"cannot read {path}: {error.strerror or error}") from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # `datasets` depends on it, and would write a copy to its cache

    with errors_as(f"{path} is not a readable Parquet file"), _reading(path):
        return pyarrow.parquet.read_table(path).to_pylist()


def _parse_csv(text: str, path: Path, delimiter: str) -> list[dict[str, Any]]:
    first = text.partition("\n")[0]
    if delimiter not in first and ";" in first:  # a spreadsheet's where 0.5 is written 0,5
        delimiter = ";"
    csv.field_size_limit(2**31 - 1)  # else 128 KiB
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        rows, header = list(reader), list(reader.fieldnames or ())
    except csv.Error as error:
        raise RosaError(f"{path}, line {reader.reader.line_num}: bad CSV ({error})") from None
    for name, count in Counter(header).items():
        if count > 1:
            raise RosaError(f"{path} has {count} columns named '{name}'; rename or remove one")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise RosaError(
                f"{path}, row {number}: it has not as many fields as the first line, which names "
                f"{', '.join(header)}; quote text that holds {delimiter!r} or a line break"
            )
    return rows


def _parse_json(text: str, path: str | Path) -> list[Any]:
    if text.lstrip().startswith("["):
        return _parse_array(text, path)
    if kind := describe_text(text):
        raise RosaError(f"{path} {kind}")
    # Split at newlines only: str.splitlines would also cut at U+2028 inside a JSON string.
    lines = enumerate(text.split("\n"), 1)
    return [_parse_line(line, path, number) for number, line in lines if line.strip()]


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
