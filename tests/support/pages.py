"""Pages of the docs as tests read them: their code blocks and the commands in them.

A block is run unless `<!-- no-run -->` precedes it. A `bash` block holds commands that a test
runs, a `console` block (`$ rosa ...`) a session that needs data or hardware of the reader's.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = (ROOT, DOCS, DOCS / "guides", DOCS / "reference", DOCS / "notes")
PAGES = sorted(page for folder in FOLDERS for page in folder.glob("*.md"))
_SKIPPED = re.compile(r"<!-- no-run -->\n```.*?\n```", re.DOTALL)


def read_page(name: str) -> str:
    """A page by its path below `docs/`."""
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next heading of its level or above."""
    level = heading.split()[0]
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"no heading {heading!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language that are to be run."""
    return re.findall(rf"```{language}\n(.*?)```", _SKIPPED.sub("", text), flags=re.DOTALL)


def rosa_commands(text: str) -> list[list[str]]:
    """The arguments of each `rosa` command in the bash blocks."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rosa ")]
