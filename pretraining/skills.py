"""What rosa-tiny can do on worlds that it was not trained on, skill by skill.

    python -m pretraining.skills src/rosa/assets/rosa-tiny --count 500

A probe is one question about one story of the test part; it counts if every token of the answer
is the model's first choice, as in greedy generation.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
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
    "backward": documents.backward,
    "repetition": documents.repetition,
}
EARLY = (*documents.QUESTIONS, "sums", "lettered", "pairs", "forward", "backward", "repetition")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.folder)
    words = AutoTokenizer.from_pretrained(arguments.folder)
    print(json.dumps(measure(model, words, arguments.count), indent=1))


if __name__ == "__main__":
    main()
