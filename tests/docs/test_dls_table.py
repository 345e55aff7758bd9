"""docs/dls_methods.md is what the tests say."""

from __future__ import annotations

import subprocess
import sys

from tests.support.dls_table import LOOPS, PAGE


def test_the_page_is_written_from_the_tests_that_there_are() -> None:
    """In an interpreter of its own, as it collects tests."""
    code = "from tests.support.dls_table import page; print(page(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PAGE.parents[1]
    )
    assert done.returncode == 0, done.stderr
    now = PAGE.read_text(encoding="utf-8")
    assert done.stdout == now, "write it anew: python -m tests.support.dls_table"


def test_the_page_has_tested_and_refused_cells() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[0:2] == "| "]
    by_method = {cells[1].strip(): cells[2:-1] for cells in (row.split("|") for row in rows)}
    assert [loop.strip() for loop in by_method["method"]] == list(LOOPS)
    assert [cell.split()[0] for cell in by_method["RoSA"]] == ["1"] * len(LOOPS)
    assert {cell.strip() for cell in by_method["prompt tuning"]} == {"refused"}
