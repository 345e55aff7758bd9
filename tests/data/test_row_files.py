"""Reading rows of JSON, CSV and Parquet files: what comes out, and what is said of wrong files."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import re

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.data.row_files import read_rows
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
    ("suffix", "content", "complaint"),
    [
        (".json", b"", "has no rows"),
        (".json", b"[]", "has no rows"),
        (".json", b"\n\n", "has no rows"),
        (".json", b"\xe9", "is not UTF-8 text (byte 0)"),
        (".json", b'[{"a": 1}, 7]', "row 2: expected an object with named fields, found int"),
        (".json", b'{"a": 1}\n[1]\n', "row 2: expected an object with named fields, found list"),
        (".json", b'[{"a": 1}', "row 2: bad JSON"),
        (".csv", b"", "has no rows"),
        (".csv", b"a,b\n", "has no rows"),
        (
            ".csv",
            b"a,b\n1,2\n3,4,5\n",
            "row 2: it has not as many fields as the first line, which names",
        ),
        (".csv", b"a,b\n1,2\n3\n", "row 2: it has not as many fields"),
        (".csv", b"a,b,a\n1,2,3\n", "has 2 columns named 'a'"),
        (".csv", b'a,b\n1,"2\n', "line 2: bad CSV"),
    ],
)
def test_wrong_content_is_named(tmp_path, suffix, content, complaint):
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(content)
    with pytest.raises(RosaError, match=re.escape(complaint)) as caught:
        read_rows(file)
    assert str(file) in str(caught.value)


ROW = '{"instruction": "a", "output": "b"}'
LINES = "\n".join([ROW, '{"instruction" "a"}'])


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("text,label\nhello,1\n", "CSV"),
        ('"text","label"\n"hello","1"\n', "CSV"),
        ("0,1\nhello,1\n", "CSV"),
        ("false;true\n1;2\n", "CSV"),
        ("instruction\toutput\na\tb\n", "TSV"),
        ("- instruction: a\n  output: b\n", "YAML"),
        ("---\ninstruction: a\n", "YAML"),
        ("rows:\n- instruction: a\n", "YAML"),
        (json.dumps(json.loads(ROW), indent=2), "one JSON object over 4 lines"),
        ("\n".join([json.dumps(json.loads(ROW), indent=1)] * 2), "JSON objects over several lines"),
        (json.dumps({"version": 1, "data": [json.loads(ROW)]}, indent=1), "its key 'data'"),
        (str(json.loads(ROW)), "Python dicts"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "Git LFS"),
        ("question", "is not JSON: it begins with 'question'"),
    ],
)
def test_text_that_is_not_json_is_named_with_what_to_do(tmp_path, content, kind):
    file = tmp_path / "rows.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RosaError, match=re.escape(kind)) as caught:
        read_rows(file)
    assert str(caught.value).startswith(str(file))
    assert ";" in str(caught.value)


def _arrow(table, sink):
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (pyarrow.parquet.write_table, "Parquet"),
        (pyarrow.feather.write_feather, "Arrow"),
        (_arrow, "an Arrow stream"),
    ],
)
def test_tables_of_other_formats_are_named(tmp_path, write, kind):
    file = tmp_path / "rows.json"
    write(pyarrow.table({"instruction": ["a"], "output": ["b"]}), str(file))
    with pytest.raises(RosaError, match=f"is {kind}; (convert it|give it the suffix .parquet)"):
        read_rows(file)


@pytest.mark.parametrize(
    ("encode", "kind"),
    [
        (gzip.compress, "gzip"),
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda raw: raw.decode().encode("utf-16"), "UTF-16"),
        (lambda raw: raw.decode().encode("utf-16-le"), "UTF-16"),
        (lambda raw: raw.decode().encode("utf-16-be"), "UTF-16"),
    ],
)
def test_bytes_that_are_not_utf_8_are_named(tmp_path, encode, kind):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(encode(ROW.encode()))
    with pytest.raises(RosaError, match=kind):
        read_rows(file)


def test_one_damaged_row_does_not_make_it_another_format(tmp_path):
    for lines in (LINES, "\n".join(['"instruction": "a", "output": "b"}', ROW])):
        file = tmp_path / "rows.jsonl"
        file.write_text(lines)
        with pytest.raises(RosaError, match=r"row [12]: bad JSON"):
            read_rows(file)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(RosaError, match=r"no data file .*absent\.json"):
        read_rows(tmp_path / "absent.json")
    with pytest.raises(RosaError, match="is a folder"):
        read_rows(tmp_path)


def test_a_byte_order_mark_and_a_line_separator_are_harmless(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('\ufeff{"a": "one\u2028two"}\n', encoding="utf-8")
    assert read_rows(file) == [{"a": "one\u2028two"}]


# What a library's type inference would change: 7, a date, missing values, a number, a bool.
RAW = [
    "007",
    "2024-01-02",
    "NA",
    "null",
    "",
    "1,000",
    "1e3",
    "True",
    " padded ",
    'a "quote"',
    "é\n2",
]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".CSV", ";")])
def test_every_value_of_a_csv_file_is_its_text(tmp_path, suffix, delimiter):
    file = tmp_path / f"rows{suffix}"
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.writer(opened, delimiter=delimiter)
        writer.writerows([["instruction", "output"], *([text, text] for text in RAW)])
    assert read_rows(file) == [{"instruction": text, "output": text} for text in RAW]


def test_a_csv_field_may_be_long(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\n" + "x" * 200_000 + ",y\n")
    assert read_rows(file)[0]["prompt"] == "x" * 200_000


def test_a_parquet_file_keeps_lists_and_types(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "7"}]
    rows = [{"messages": turns, "n": 1}, {"messages": turns[:1], "n": None}]
    file = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert read_rows(file) == rows


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_text("a,b\n1,2\n")
    with pytest.raises(RosaError, match=r"rows\.parquet is not a readable Parquet file"):
        read_rows(tmp_path / "rows.parquet")
    with pytest.raises(RosaError, match=r"no data file .*absent\.parquet"):
        read_rows(tmp_path / "absent.parquet")
