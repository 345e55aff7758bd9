"""A report's page taken apart again: its tags, its texts and the data in it."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from html.parser import HTMLParser
from typing import Any

from rosa.compare.results import RunResult, StudyResults

VOID = {"meta", "link", "br", "input", "img", "hr"}


class Reader(HTMLParser):
    """What a page is made of: tags, attributes, the text of scripts; whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []  # cells by row
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        else:
            self.texts.append(data)
            if "table" in self.open and {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data.strip("\n ")


def unpack(html: str) -> dict[str, Any]:
    """The page's data, as its script reads them."""
    ((attrs, text),) = [s for s in Reader(html).scripts if s[0].get("id") == "answers"]
    if attrs["type"] == "application/gzip":
        text = gzip.decompress(base64.b64decode(text)).decode()
    return json.loads(text)


def answers(data: dict[str, Any], run: RunResult, task: str) -> list[tuple[Any, ...]]:
    """(index, prompt, label, prediction, response, right) of one run, from the page's data."""
    number = [t["name"] for t in data["tasks"]].index(task)
    about = data["tasks"][number]
    (packed,) = [
        r["answers"][str(number)]
        for r in data["runs"]
        if data["groups"][r["group"]] == {"model": run.model, "train_set": run.train_set}
        and data["methods"][r["method"]]["name"] == run.method
        and data["seeds"][r["seed"]] == run.seed
    ]
    rows = packed.get("rows", range(len(about["prompt"])))
    responses = packed.get("response", [-1] * len(rows))
    text = dict(enumerate(about["texts"]))
    return [
        (
            about["index"][row],
            about["prefix"] + about["prompt"][row] + about["suffix"],
            about["label"][row],
            text.get(prediction),
            text.get(response),
            right == "1",
        )
        for row, prediction, response, right in zip(
            rows, packed["prediction"], responses, packed["right"], strict=True
        )
    ]


def on_disk(study: StudyResults, run: RunResult, task: str) -> list[tuple[Any, ...]]:
    file = study.folder / run.folder / "evaluation" / f"{task}.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    keys = ("index", "prompt", "label", "prediction", "response", "correct")
    return sorted(tuple(line[key] for key in keys) for line in lines)
