"""The blocks of docs/guides/serving.md run, in their order, as one program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.pages import ROOT, blocks


def test_the_blocks_run_one_after_another(tmp_path: Path) -> None:
    found = blocks((ROOT / "docs" / "guides/serving.md").read_text(encoding="utf-8"), "python")
    assert len(found) == 4
    checks = """
assert (greedy == static).all() and beams.shape[0] == 4
assert (assisted == model.generate(**one, max_new_tokens=8)).all()
assert (logits - model(**prompts).logits).abs().max() < 1e-4 < (logits - without).abs().max()
assert loss.isfinite()
"""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*found, checks])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
