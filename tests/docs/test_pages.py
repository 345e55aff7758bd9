"""The docs are true: their commands run, their links lead somewhere, generated pages are fresh."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.generators import pages
from rosa.cli.main import COMMANDS, main
from rosa.cli.recipe_parser import load_recipe
from tests.support.pages import PAGES, ROOT, blocks, rosa_commands

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_commands_run(in_a_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = rosa_commands(README)
    assert [command[0] for command in commands] == ["params", "train", "evaluate", "demo"]
    for command in commands:
        if "--help" in command:
            with pytest.raises(SystemExit, match="0"):
                main(command)
        else:
            assert main(command) == 0, command
    for picture in ("layers.png", "loss.png"):
        assert (in_a_copy / "runs" / "tiny" / picture).is_file()


def test_the_readmes_python_runs(in_a_copy: Path) -> None:
    """Each block in a new interpreter, as a reader would."""
    found = blocks(README, "python")
    assert len(found) == 2
    for code in found:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}
        )
        assert done.returncode == 0, done.stderr
    assert (in_a_copy / "runs" / "quickstart" / "adapter" / "adapter_config.json").is_file()
    assert len((in_a_copy / "runs/quickstart/dls_history.jsonl").read_text().splitlines()) == 2


def test_the_readme_names_every_command() -> None:
    assert set(re.findall(r"^\| `rosa (\w+)", README, flags=re.MULTILINE)) == set(COMMANDS)


def test_the_commands_on_real_input_run(
    in_a_copy: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "guides/real_models.md").read_text(encoding="utf-8")
    commands = rosa_commands(page.replace("$DATA", str(shared_data)))
    assert [command[0] for command in commands] == ["convert", "train", "evaluate"]
    quick = {"train": ["--max_steps", "4", "--limit", "60", "--validation", "4"]}
    for command in commands:
        assert main([*command, *quick.get(command[0], [])]) == 0


@pytest.mark.parametrize("recipe", sorted(p.name for p in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_valid_and_names_its_command(recipe: str) -> None:
    path = ROOT / "recipes" / recipe
    command = path.read_text().split()[2]
    assert path.read_text().startswith(f"# rosa {command} recipes/{recipe}")
    if command == "train":
        load_recipe(str(path))
    else:
        assert main([command, str(path), "--dry_run"]) == 0


def test_generated_parts_are_fresh() -> None:
    """Else run python -m docs.generators."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    for link in links:
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name}: {link}"
