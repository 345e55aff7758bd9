"""Files that are read while another process writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosa.common.files import read_jsonl


def test_jsonl_of_a_running_writer_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_jsonl(file) == []
    file.write_text('{"a": "x\u2028y"}\n{"b": 1}\n{"c', encoding="utf-8")
    assert read_jsonl(file, partial=True) == [{"a": "x\u2028y"}, {"b": 1}]
    with pytest.raises(ValueError, match="Unterminated"):
        read_jsonl(file)
