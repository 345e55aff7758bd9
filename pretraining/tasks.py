"""Write the toy fine-tuning and test sets in the JSON format of LLM-Adapters.

    python -m pretraining.tasks src/rosa/assets/tiny-data

tiny-sums asks a word problem and wants the sum and "The answer is 7."; tiny-choice asks about a
story and wants "the correct answer is answer2". rosa-tiny can solve both in the wordings of its
pretraining and has met neither in this form. Stories of the training and test sets come from
different parts of the world; so do the number pairs of the sums.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from pretraining import world
from pretraining.documents import change_facts, distractors, facts, question, questions

Row = dict[str, str]
OPTIONS = 4


def sums_row(rng: random.Random, part: str) -> Row:
    """A word problem about two people."""
    group = world.changes(rng, 2, part)
    told = [change_facts(rng, change) for change in group]
    story = [first for first, _ in told] + [second for _, second in told]
    change = rng.choice(group)
    return {
        "instruction": f"{' '.join(story)} How many {change.goods} does {change.name} have now?",
        "input": "",
        "output": f"{change.calculation}. The answer is {change.result}.",
        "answer": str(change.result),
    }


def choice_row(rng: random.Random, part: str) -> Row:
    """A question about three people with four options, one of which nobody in the story has."""
    group = world.people(rng, 3, part)
    kind, person = rng.choice(questions(group))
    ask, word, sentence = question(kind, person)
    options = distractors(rng, kind, word, group, OPTIONS)
    listed = ", ".join(f"{option}: answer{i}" for i, option in enumerate(options, 1))
    answer = f"answer{options.index(word) + 1}"
    return {
        "instruction": f"{facts(rng, group)} The choices are {listed}. {ask}",
        "input": "",
        "output": f"{sentence.format(word)} the correct answer is {answer}",
        "answer": answer,
    }


TASKS: dict[str, Callable[[random.Random, str], Row]] = {
    "tiny-sums": sums_row,
    "tiny-choice": choice_row,
}


def rows(task: str, part: str, count: int) -> list[Row]:
    """`count` rows with different questions; the same call gives the same rows."""
    rng = random.Random(f"{task}-{part}")
    found: dict[str, Row] = {}
    while len(found) < count:
        row = TASKS[task](rng, part)
        found.setdefault(row["instruction"], row)
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=3000)
    parser.add_argument("--test", type=int, default=250)
    arguments = parser.parse_args()
    for task in TASKS:
        sets = {"train": ("finetuning", arguments.train), "test": ("test", arguments.test)}
        for name, (part, count) in sets.items():
            path = arguments.folder / task / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows(task, part, count), indent=0) + "\n", encoding="utf-8")
            print(f"{path}: {count} rows")


if __name__ == "__main__":
    main()
