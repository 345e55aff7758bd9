"""Pages of the docs as tests read them: their code blocks and the commands in them.

A block runs unless `<!-- no-run -->` stands above it. A `bash` block holds commands that a test
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


def headings(text: str) -> list[tuple[int, str]]:
    """(line number, heading with its marks) of each heading outside of code blocks."""
    found, in_code = [], False
    for number, line in enumerate(text.splitlines()):
        in_code ^= line.startswith("```")
        if not in_code and re.match(r"#{1,6} ", line):
            found.append((number, line))
    return found


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next of its level or above."""
    all_headings = headings(text)
    (start,) = [number for number, line in all_headings if line == heading]
    level = len(heading.split()[0])
    ends = (n for n, line in all_headings if n > start and len(line.split()[0]) <= level)
    return "\n".join(text.splitlines()[start + 1 : next(ends, None)]) + "\n"


def anchors(text: str) -> set[str]:
    """What links to a page's headings may name, by GitHub's rules and the site's."""
    slugs = [re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()) for _, line in headings(text)]
    return {slug.replace(" ", "-") for slug in slugs}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language that are to be run."""
    return re.findall(rf"```{language}\n(.*?)```", _SKIPPED.sub("", text), flags=re.DOTALL)


def rosa_commands(text: str) -> list[list[str]]:
    """The arguments of each `rosa` command in the bash blocks."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rosa ")]
