"""The instruction template in rosa-tiny's pretraining: known, but in other uses than the tasks'.

Nothing to run here; `python -m pretraining.pretrain` uses it.

A real base model has met Alpaca's template and words such as "answer1" before it is fine-tuned.
rosa-tiny has too: it repeats, names, tells and works things out in the template. What the
fine-tuning tasks ask for (the label after "the correct answer is", the number after "The answer
is" behind a word problem) never comes in it.
"""

from __future__ import annotations

import random

from pretraining import world
from pretraining.documents import (
    Document,
    Options,
    change_facts,
    distractors,
    facts,
    options,
    question,
    questions,
)
from rosa.data.prompts import instruction_prompt


def _prompted(rng: random.Random, request: str, story: str, answer: str) -> Document:
    """The story before the request, after it, or as the input; the answer ends the document."""
    form = rng.randrange(3)
    if form == 0 and story:
        prompt = instruction_prompt(request, story)
    elif form == 1 or not story:
        prompt = instruction_prompt(f"{request} {story}".strip())
    else:
        prompt = instruction_prompt(f"{story} {request}")
    return [(prompt, False), (answer, True)]


def _story(rng: random.Random, size: int, part: str) -> tuple[list[world.Person], str]:
    group = world.people(rng, size, part)
    return group, facts(rng, group)


def _choices(rng: random.Random, group: list[world.Person], kind: str, word: str) -> Options:
    return options(rng, distractors(rng, kind, word, group, rng.randint(2, 5)))


def tell(rng: random.Random, size: int, part: str = "pretraining") -> Document:
    """A question about a story, answered in a sentence, whether or not there are labels."""
    group, story = _story(rng, size, part)
    kind, person = rng.choice(questions(group))
    ask, word, sentence = question(kind, person)
    if rng.random() < 0.3:
        story = f"{story} The choices are {_choices(rng, group, kind, word)}."
    return _prompted(rng, ask, story, sentence.format(word))


def label(rng: random.Random, size: int, part: str = "pretraining") -> Document:
    """The same with a labeled list, and told to pick: after the sentence comes the label."""
    group, story = _story(rng, size, part)
    kind, person = rng.choice(questions(group))
    ask, word, sentence = question(kind, person)
    listed = _choices(rng, group, kind, word)
    answer = f"{sentence.format(word)} The label is {listed.labels[word]}."
    return _prompted(rng, f"{ask} Pick one label.", f"{story} The choices are {listed}.", answer)


def repeat(rng: random.Random, size: int, part: str = "pretraining") -> Document:
    """One sentence, said again; here the words of the tasks' answers are met."""
    group = world.people(rng, 1, part)
    sentence = rng.choice(
        (
            facts(rng, group),
            f"the correct answer is {rng.choice(world.PLACES)}.",
            f"The answer is {rng.choice(world.THINGS)}.",
            f"answer{rng.randint(1, 5)} comes after answer{rng.randint(1, 5)}.",
            f"Answer{rng.randint(1, 5)}: {rng.choice(world.PLACES)}.",
            f"answer{rng.randint(1, 5)} is {rng.choice(('correct', 'short', 'long'))}.",
        )
    )
    return _prompted(rng, "Repeat this sentence.", sentence, sentence)


def topic(rng: random.Random, size: int, part: str = "pretraining") -> Document:
    """A word problem that is not to be solved: only what it is about."""
    group = world.changes(rng, min(size, 2), part)
    told = [change_facts(rng, change) for change in group]
    story = " ".join([first for first, _ in told] + [second for _, second in told])
    change = rng.choice(group)
    request = f"How many {change.goods} does {change.name} have now?"
    if rng.random() < 0.5:
        request += " Do not count."
    answer = f"It is about {change.name} and the {change.goods}."
    return _prompted(rng, request, story, answer)


def calculate(rng: random.Random, size: int, part: str = "pretraining") -> Document:
    """A bare sum."""
    adds = rng.random() < 0.5
    a, b = world.operands(rng, adds)
    result, sign = (a + b, "+") if adds else (a - b, "-")
    request = rng.choice((f"Work out {a} {sign} {b}.", f"What is {a} {sign} {b}?"))
    return _prompted(rng, request, "", f"{a} {sign} {b} = {result}.")


INSTRUCTED = {
    "tell": tell,
    "label": label,
    "repeat": repeat,
    "topic": topic,
    "calculate": calculate,
}
