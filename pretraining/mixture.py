"""What rosa-tiny reads in which stage: first what makes it look things up, then everything.

Nothing to run here; `python -m pretraining.pretrain` uses it.

So small a model stays for long at guessing one of the right kind of word. Each step of looking up
is learned within a few hundred thousand tokens once it is asked for in its barest form; a stage
ends when the skills that it is for are there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pretraining import tasks
from pretraining.documents import PLAIN, Document
from pretraining.instructed import INSTRUCTED


@dataclass(frozen=True)
class Stage:
    """Shares of the kinds of documents, and the skills that end the stage."""

    mix: dict[str, float]
    sizes: tuple[int, ...] = (2, 2, 3)
    until: tuple[str, ...] = ()


STAGES = (
    Stage(  # copying
        {"repetition": 0.25, "pairs": 0.35, "lookup": 0.30, "sums": 0.05, "lettered": 0.05},
        until=("pairs",),
    ),
    Stage(  # from a word to the one after the next
        {"repetition": 0.05, "pairs": 0.05, "forward": 0.25, "kept": 0.05, "lookup": 0.44,
         "sums": 0.04, "lettered": 0.12},
        until=("where", "what"),
    ),
    Stage(  # to names too
        {"repetition": 0.03, "forward": 0.06, "kept": 0.10, "lookup": 0.40, "sums": 0.16,
         "lettered": 0.25},
        until=("where", "what", "who"),
    ),
    Stage(  # to labels and numbers
        {"forward": 0.26, "kept": 0.03, "lookup": 0.06, "sums": 0.06, "lettered": 0.23,
         "problem": 0.20, "choice": 0.04, "tell": 0.04, "repeat": 0.03, "topic": 0.02,
         "calculate": 0.03},
        until=("lettered", "forward"),
    ),
    Stage(  # everything
        {"forward": 0.03, "kept": 0.05, "lookup": 0.10, "who": 0.05, "sums": 0.10,
         "lettered": 0.05, "problem": 0.15, "choice": 0.11, "tell": 0.09, "label": 0.11,
         "repeat": 0.07, "topic": 0.03, "calculate": 0.06},
        sizes=(2, 3, 3),
    ),
)  # fmt: skip


def draw(rng: random.Random, stage: Stage) -> Document:
    """One document of a stage."""
    kind = rng.choices(list(stage.mix), list(stage.mix.values()))[0]
    size = rng.choice(stage.sizes)
    if kind in INSTRUCTED:
        return INSTRUCTED[kind](rng, size)
    if kind == "problem":
        size = rng.choice((1, 2, 2))
    return PLAIN[kind](rng, size, rng.randint(4, 9))


def sample_texts(count: int = 4000) -> list[str]:
    """Enough documents to meet every word of the world."""
    rng = random.Random("words")
    documents = [draw(rng, STAGES[i % len(STAGES)]) for i in range(count)]
    texts = ["".join(text for text, _ in document) for document in documents]
    return texts + [
        " ".join(row.values())
        for task in tasks.TASKS
        for row in tasks.rows(task, "finetuning", 200)
    ]
