"""How often rosa-tiny reads what: a short first stage that teaches looking up, then everything.

Nothing to run here; `python -m pretraining.pretrain` uses it.
"""

from __future__ import annotations

import random

from pretraining.documents import PLAIN, Document
from pretraining.instructed import INSTRUCTED

# The first stage is short contexts and pure copying, from which attention learns to find things.
FIRST_STAGE = 0.10
FIRST = {"repetition": 0.15, "lookup": 0.55, "sums": 0.10, "lettered": 0.20}
SECOND = {
    "repetition": 0.02, "lookup": 0.20, "sums": 0.10, "lettered": 0.06, "problem": 0.14,
    "choice": 0.20,
    "tell": 0.06, "label": 0.08, "name": 0.03, "repeat": 0.03, "topic": 0.04, "calculate": 0.03,
}  # fmt: skip


def draw(rng: random.Random, progress: float) -> Document:
    """One document; stories get longer as pretraining goes on."""
    mix = FIRST if progress < FIRST_STAGE else SECOND
    kind = rng.choices(list(mix), list(mix.values()))[0]
    size = 2 if progress < FIRST_STAGE / 2 else rng.choice((2, 3, 3, 4))
    if kind in INSTRUCTED:
        return INSTRUCTED[kind](rng, size)
    size = min(size, 3) if kind == "problem" else size
    return PLAIN[kind](rng, size, rng.randint(4, 9))


def sample_texts(count: int = 4000) -> list[str]:
    """Enough documents to meet every word of the world."""
    rng = random.Random("words")
    documents = [draw(rng, i % 2) for i in range(count)]
    return ["".join(text for text, _ in document) for document in documents]
