"""What rosa-tiny can do on worlds that it was not trained on, skill by skill.

    python -m pretraining.skills src/rosa/assets/rosa-tiny --count 500

It writes skills.json next to the model, and the table of it into the model card. A probe is one
question about one story of the test part; it counts if every token of the answer is the model's
first choice, as in greedy generation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pretraining import documents, instructed
from pretraining.documents import Document, Generator

SKILLS: dict[str, Generator] = {
    **{kind: partial(documents.lookup, kinds=(kind,)) for kind in documents.QUESTIONS},
    "sums": documents.sums,
    "problem": documents.problem,
    "lettered": documents.lettered,
    "choice": documents.choice,
    "pairs": documents.pairs,
    "forward": documents.forward,
    "repetition": documents.repetition,
}
BEGIN, END = "<!-- skills: begin -->", "<!-- skills: end -->"

# The skills that the package promises, each with what it asks.
MAIN = {
    "where": "Where is Ann? among three people",
    "what": "What does Ann like?",
    "who": "Who has the tea?",
    "sums": "sums and differences up to 20",
    "problem": "word problems about two people, the calculation written down",
    "lettered": "the label of a word in a list of up to five",
    "choice": "a question about three people with labeled options: the word, then its label",
    "tell": "the same questions in the instruction template, answered in a sentence",
    "label": "tell, then the label from a list",
    "topic": "what a word problem is about, in the template",
    "calculate": "a bare sum, in the template",
}
# Only there so that the template and the words of the tasks' answers have been met.
ALSO = {"repeat": "a sentence said again, in the template"}
EARLY = (*documents.QUESTIONS, "sums", "lettered", "pairs", "forward", "repetition")


def probes(name: str, count: int, seed: int = 0) -> list[Document]:
    """`count` documents of one skill, with one question each, from the test part."""
    rng = random.Random(f"probe-{name}-{seed}")
    if name in instructed.INSTRUCTED:
        return [instructed.INSTRUCTED[name](rng, 3, "test") for _ in range(count)]
    size = 2 if name == "problem" else 3
    return [SKILLS[name](rng, size, 1, "test") for _ in range(count)]


def encode(words: PreTrainedTokenizerBase, document: Document) -> tuple[list[int], list[bool]]:
    """Token ids, and which of them are answers."""
    ids: list[int] = []
    marks: list[bool] = []
    for text, is_answer in document:
        piece = words.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        marks += [is_answer] * len(piece)
    return ids, marks


@torch.no_grad()
def accuracy(model: PreTrainedModel, words: PreTrainedTokenizerBase,
             found: list[Document]) -> float:  # fmt: skip
    """The share of documents all of whose answer tokens are the model's first choice."""
    rows = [encode(words, document) for document in found]
    right = 0
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part])
        marks = torch.tensor([marks + [False] * (width - len(marks)) for _, marks in part])
        best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        right += int(((best == ids[:, 1:]) | ~marks[:, 1:]).all(-1).sum())
    return right / len(found)


def measure(model: PreTrainedModel, words: PreTrainedTokenizerBase, count: int = 200,
            seed: int = 0, names: Iterable[str] | None = None) -> dict[str, float]:  # fmt: skip
    """Accuracy per skill, of all or of those named."""
    model.eval()
    names = names or (*SKILLS, *instructed.INSTRUCTED)
    table = {name: accuracy(model, words, probes(name, count, seed)) for name in names}
    model.train()
    return table


def provenance() -> dict[str, Any]:
    """Where the figures come from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def markdown(table: dict[str, Any]) -> str:
    """The table as it stands in the documentation."""
    lines = ["| skill | what is asked | accuracy |", "|---|---|---|"]
    for name, row in table["skills"].items():
        lines.append(f"| {name} | {row['asks']} | {row['accuracy']:.1%} |")
    lines.append(
        f"\n{table['count']} probes a skill, seed {table['seed']}; commit {table['commit']}, "
        f"{table['machine']}, Python {table['python']}, torch {table['torch']}, "
        f"transformers {table['transformers']}."
    )
    return "\n".join(lines)


def write_table(page: Path, table: dict[str, Any]) -> None:
    """Put the table between the page's two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(table)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.folder)
    words = AutoTokenizer.from_pretrained(arguments.folder)
    found = measure(model, words, arguments.count, arguments.seed, MAIN | ALSO)
    table = {
        "count": arguments.count,
        "seed": arguments.seed,
        **provenance(),
        "skills": {
            name: {"accuracy": value, "asks": (MAIN | ALSO)[name]} for name, value in found.items()
        },
    }
    path = arguments.folder / "skills.json"
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    if (card := arguments.folder / "README.md").exists():
        write_table(card, table)
    for name, value in found.items():
        print(f"{name:10} {value:6.1%}  {(MAIN | ALSO)[name]}")


if __name__ == "__main__":
    main()
