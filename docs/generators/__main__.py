"""Writes the generated parts: python -m docs.generators"""

from __future__ import annotations

from docs.generators import pages

for path, text in pages().items():
    path.write_text(text, encoding="utf-8")
