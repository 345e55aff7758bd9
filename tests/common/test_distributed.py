"""Ranks without PyTorch: what the launcher says, before there is a process group."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("launched", "expected"),
    [
        ({}, "1 True"),
        ({"WORLD_SIZE": "3", "RANK": "1"}, "3 False"),
        ({"WORLD_SIZE": "x"}, "1 True"),
    ],
)
def test_the_launchers_ranks_are_read_without_pytorch(
    launched: dict[str, str], expected: str
) -> None:
    code = """
import sys
from rosa.common.distributed import is_main_process, world_size
print(world_size(), is_main_process())
assert "torch" not in sys.modules
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")}
    command = [sys.executable, "-c", code]
    said = subprocess.check_output(command, text=True, env={**environment, **launched})
    assert said.strip() == expected
