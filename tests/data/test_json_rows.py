"""Reading JSON and JSONL rows: what comes out, and what is said about files that are wrong."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.data.json_rows import read_rows
from rosa.errors import RosaError

rows_of_text = st.lists(
    st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), min_size=1, max_size=5
)


@given(rows=rows_of_text, indent=st.sampled_from([None, 1]), ascii=st.booleans())
def test_json_and_jsonl_give_the_rows_that_were_written(tmp_path_factory, rows, indent, ascii):
    folder = tmp_path_factory.mktemp("rows")
    array, lines = folder / "rows.json", folder / "rows.jsonl"
    array.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    text = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in rows)
    lines.write_text(text, encoding="utf-8", newline="\n")
    assert read_rows(array) == rows
    assert read_rows(lines) == rows


@given(row=st.integers(0, 4))
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_bad_json_names_its_row(tmp_path_factory, kind, row):
    parts = ['{"a": "[1, {2}]"}'] * 5
    parts[row] = '{"a": "x" "b": 1}'
    file = tmp_path_factory.mktemp("bad") / f"rows.{kind}"
    file.write_text("\n".join(parts) if kind == "jsonl" else "[" + ",\n".join(parts) + "]")
    with pytest.raises(RosaError, match=rf"rows\.{kind}, row {row + 1}: bad JSON"):
        read_rows(file)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no rows"),
        (b"[]", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"\xff\xfe\x00", "is not UTF-8 text (byte 0)"),
        (b'[{"a": 1}, 7]', "row 2: expected an object with named fields, found int"),
        (b'{"a": 1}\n[1]\n', "row 2: expected an object with named fields, found list"),
        (b'[{"a": 1}', "row 2: bad JSON"),
    ],
)
def test_wrong_content_is_named(tmp_path, content, complaint):
    file = tmp_path / "rows.json"
    file.write_bytes(content)
    with pytest.raises(RosaError, match=re.escape(complaint)) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(RosaError, match=r"no data file .*absent\.json"):
        read_rows(tmp_path / "absent.json")
    with pytest.raises(RosaError, match="is a folder"):
        read_rows(tmp_path)


def test_a_byte_order_mark_and_a_line_separator_are_harmless(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff{"a": "one\u2028two"}\n', encoding="utf-8")
    assert read_rows(file) == [{"a": "one\u2028two"}]
