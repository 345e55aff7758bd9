"""guides/real_models.md: converting, training and scoring run, on a tiny GGUF file."""

from __future__ import annotations

from pathlib import Path

from tests.docs.conftest import run_quickly
from tests.support.pages import read_page, rosa_commands
from tests.support.tiny_gguf import tiny_causal_lm, write_gguf


def test_the_commands_run(in_a_copy: Path) -> None:
    write_gguf(Path("model.gguf"), tiny_causal_lm("qwen2"))
    commands = rosa_commands(read_page("guides/real_models.md"))
    assert run_quickly(commands) == ["convert", "train", "evaluate"]
