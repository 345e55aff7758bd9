"""All pages: links lead somewhere, commands exist, lines are wrapped, nothing is stale."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from docs.generators import pages
from rosa.cli.compare import GridParser
from rosa.cli.main import COMMANDS, main
from rosa.cli.parser import Parser
from rosa.cli.recipe_parser import load_recipe
from tests.support.pages import DOCS, PAGES, ROOT, anchors

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
WIDTH = 100


@each_page
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]+))?\)", text):
        if "://" in link:
            continue
        target = (page.parent / link).resolve() if link else page
        assert target.exists(), f"{page.name}: {link}"
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{page.name}: {link} is not part of the site"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"


@each_page
def test_lines_are_wrapped(page: Path) -> None:
    """Tables, code, generated parts and what cannot be broken (links, headings) may be longer."""
    text = page.read_text(encoding="utf-8")
    if "; do not edit -->" in text:
        return
    text = re.sub(r"<!-- (table: |[^>]*generated ).*?<!-- /", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for line in text.splitlines():
        if len(line) > WIDTH and not line.startswith(("|", "#", "!", "<!--")):
            assert "](" in line, line
            assert " " not in line[WIDTH:].strip(), line


@each_page
def test_every_command_and_option_exists(page: Path) -> None:
    """In `bash` blocks, in `console` blocks and in the text; the changelog names old ones too."""
    if page.name == "CHANGELOG.md":
        return
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, words in re.findall(r"(?:^|\$ |`)rosa (\w+)([^`\n#]*)", text, re.MULTILINE):
        assert command in COMMANDS, f"rosa {command}"
        parser = import_module(f"rosa.cli.{command}").build_parser()
        if isinstance(parser, Parser):  # those of recipes and grids depend on the method
            known = {"help", *parser.option_names}
            assert set(re.findall(r"--([\w-]+)", words)) <= known, f"rosa {command}{words}"


@pytest.mark.parametrize("recipe", sorted(p.name for p in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_valid_and_names_its_command(recipe: str) -> None:
    path = ROOT / "recipes" / recipe
    command = path.read_text().split()[2]
    assert path.read_text().startswith(f"# rosa {command} recipes/{recipe}")
    if command == "train":
        load_recipe(str(path))
        return
    grid, _ = GridParser().parse_args([str(path)])
    if grid.models == ["rosa-tiny"]:  # others need a model and data that are not here
        assert main([command, str(path), "--dry_run"]) == 0


def test_generated_parts_are_fresh() -> None:
    """Else run python -m docs.generators."""
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name
