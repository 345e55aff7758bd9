"""guides/real_models.md: the commands on real input run."""

from __future__ import annotations

from pathlib import Path

from tests.docs.conftest import run_quickly
from tests.support.pages import read_page, rosa_commands, section


def test_the_commands_on_stories260k_run(in_a_copy: Path, shared_data: Path) -> None:
    page = section(read_page("guides/real_models.md"), "## stories260K: the whole path on a laptop")
    commands = rosa_commands(page.replace("$DATA", str(shared_data)))
    assert run_quickly(commands) == ["convert", "train", "evaluate"]
