"""What a file holds that was given as rows and is not JSON, and what to do about it.

Both functions return the end of a sentence that begins with the file's name.
"""

from __future__ import annotations

import ast
import json
import re

_UNPACK = "unpack it first"
# The first bytes of files that hold no UTF-8 text.
_SIGNATURES = (
    (b"PAR1", "Parquet", "give it the suffix .parquet"),
    (b"ARROW1", "Arrow", "convert it (read_feather(...).to_parquet(...) in pandas)"),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream",
        "convert it (Dataset.from_file(...).to_parquet(...) in datasets)",
    ),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"PK\x03\x04", "a zip archive or an Office file", "give a JSON or JSONL file from it"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
)


def describe_binary(head: bytes) -> str | None:
    """`is UTF-16 text; save it as UTF-8` and the like; None for what may be UTF-8."""
    for signature, kind, cure in _SIGNATURES:
        if head.startswith(signature):
            return f"is {kind}; {cure}"
    return "is UTF-16 text; save it as UTF-8" if b"\0" in head[:4] else None


def describe_text(text: str) -> str | None:
    """`is CSV; ...` and the like; None for JSONL, also where some of its rows are damaged.

    >>> describe_text('{\\n "a": 1\\n}')
    'is one JSON object over 3 lines; write rows as an array ([{...}, {...}]) or one in each line'
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if any(_is_json(line) for line in lines[:2]):
        return None
    first = lines[0] if lines else "{"
    if first.startswith("{"):
        return _describe_objects(text.strip(), first)
    if first.startswith("<"):
        return "is a web page or XML; download the JSON file itself"
    if first.startswith("version https://git-lfs"):
        return "is a Git LFS pointer in place of the data; run `git lfs pull`"
    if re.match(r"---$|- |[\w-]+:(\s|$)", first):
        return "is YAML; write the rows as JSON or JSONL"
    for mark, kind in (("\t", "TSV"), (",", "CSV"), (";", "CSV")):
        if mark in first:
            return f"is {kind}; give it the suffix .{kind.lower()}"
    return f"is not JSON: it begins with {first[:40]!r}; give a JSON or JSONL file"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _describe_objects(text: str, first: str) -> str | None:
    """Of JSON objects over several lines, and of Python's."""
    try:
        found, end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        try:
            is_python = isinstance(ast.literal_eval(first), dict)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        return "holds Python dicts; write each row with json.dumps" if is_python else None
    rows = next((key for key, value in found.items() if isinstance(value, list)), None)
    if end == len(text) and rows is not None:
        return f"is one JSON object; write the list of rows in its key '{rows}' alone"
    if end == len(text):
        what = f"is one JSON object over {text.count(chr(10)) + 1} lines"
    else:
        what = "holds JSON objects over several lines"
    return f"{what}; write rows as an array ([{{...}}, {{...}}]) or one in each line"
