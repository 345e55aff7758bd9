"""What rosa-tiny reads in pretraining: short documents with many questions about a few facts.

Nothing to run here; `python -m pretraining.pretrain` uses it.

A document is a list of (text, is_answer) pieces. The answers are what a reader of the rest could
know, so they weigh more in the loss, and the skills are measured on them. Supervision is dense on
purpose: so small a model learns to look things up only where many answers hang on few facts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from pretraining import world
from pretraining.world import Change, Person

Piece = tuple[str, bool]
Document = list[Piece]

QUESTIONS = ("where", "who_there", "what", "who_has")


def place_fact(rng: random.Random, person: Person) -> str:
    return f"{person.name} {rng.choice(('is in', 'went to'))} the {person.place}."


def thing_fact(rng: random.Random, person: Person) -> str:
    return f"{person.name} {rng.choice(('has', 'holds'))} the {person.thing}."


def facts(rng: random.Random, people: Sequence[Person]) -> str:
    """Every place and every thing, in any order."""
    told = [place_fact(rng, p) for p in people] + [thing_fact(rng, p) for p in people]
    rng.shuffle(told)
    return " ".join(told)


def question(kind: str, person: Person) -> tuple[str, str, str]:
    """A question, its answer in a word, and in a sentence up to that word."""
    return {
        "where": (f"Where is {person.name}?", person.place, f"{person.name} is in the"),
        "who_there": (f"Who is in the {person.place}?", person.name, "It is"),
        "what": (f"What does {person.name} have?", person.thing, f"{person.name} has the"),
        "who_has": (f"Who has the {person.thing}?", person.name, "It is"),
    }[kind]


def lookup(rng: random.Random, size: int, queries: int, part: str = "pretraining",
           kinds: Sequence[str] = QUESTIONS) -> Document:  # fmt: skip
    """Facts about `size` people, then questions with short answers or sentences."""
    group = world.people(rng, size, part)
    document: Document = [(facts(rng, group), False)]
    asked = [(kind, person) for kind in kinds for person in group]
    rng.shuffle(asked)
    for kind, person in asked[:queries]:
        ask, word, sentence = question(kind, person)
        if rng.random() < 0.3:
            document += [(f"\n{ask} {sentence}", False), (f" {word}.", True)]
        else:
            document += [(f"\n{ask}", False), (f" {word}.", True)]
    return document


def sums(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A column of small additions and subtractions; `size` and `part` are of no matter here."""
    document: Document = []
    for i in range(queries):
        adds = rng.random() < 0.5
        a, b = world.operands(rng, adds)
        result, sign = (a + b, "+") if adds else (a - b, "-")
        ask, answer = rng.choice(
            (
                (f"{a} {sign} {b} =", f" {result}."),
                (f"{a} {sign} {b} =", f" {result}."),
                (f"What is {a} {sign} {b}?", f" {result}."),
                (f"What is {a} {sign} {b}? The answer is", f" {result}."),
            )
        )
        document += [("\n" * (i > 0) + ask, False), (answer, True)]
    return document


def change_facts(rng: random.Random, change: Change) -> tuple[str, str]:
    """What someone has at first, and what happens then."""
    name, goods = change.name, change.goods
    happens = rng.choice(("gets", "finds", "buys") if change.adds else ("loses", "eats", "sells"))
    more = " more" if change.adds else ""
    return f"{name} has {change.start} {goods}.", f"{name} {happens} {change.by}{more} {goods}."


def problem(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Word problems about `size` people, each solved by writing the sum down first."""
    group = world.changes(rng, size, part)
    told = [change_facts(rng, change) for change in group]
    text = [first for first, _ in told]
    rng.shuffle(text)
    later = [second for _, second in told]
    rng.shuffle(later)
    document: Document = [(" ".join(text + later), False)]
    for change in rng.sample(group, min(queries, size)):
        document += [
            (f"\nHow many {change.goods} does {change.name} have now?", False),
            (f" {change.calculation}.", True),
            (f" {change.name} has", False),
            (f" {change.result} {change.goods}.", True),
        ]
    return document


LABELS = ("12345", "12345", "abcde", "ABCDE")
LABEL_FORMS = ("({}) {}", "{}: {}", "{}. {}")


def options(rng: random.Random, words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A labelled list of `words`, and the label of each."""
    labels = dict(zip(words, rng.choice(LABELS), strict=False))
    form = rng.choice(LABEL_FORMS)
    return " ".join(form.format(label, word) for word, label in labels.items()), labels


def lettered(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A labelled list alone: which label has which word."""
    words = rng.sample((*world.NAMES, *world.PLACES, *world.THINGS), rng.randint(2, 5))
    listed, labels = options(rng, words)
    document: Document = [(f"The choices are {listed}.", False)]
    for word in rng.sample(words, len(words))[:queries]:
        ask = rng.choice((f"Which label has {word}?", f"{word} has the label"))
        document += [(f"\n{ask}", False), (f" {labels[word]}.", True)]
    return document


def pool_of(kind: str) -> Sequence[str]:
    return {"where": world.PLACES, "what": world.THINGS}.get(kind, world.NAMES)


def distractors(rng: random.Random, kind: str, word: str, group: Sequence[Person],
                count: int) -> list[str]:  # fmt: skip
    """`count` options with the right one among them; the others come from the story first."""
    field = {"where": "place", "what": "thing"}.get(kind, "name")
    near = [getattr(p, field) for p in group if getattr(p, field) != word]
    far = [w for w in pool_of(kind) if w != word and w not in near]
    rng.shuffle(near)
    rng.shuffle(far)
    chosen = [word, *(near + far)[: count - 1]]
    rng.shuffle(chosen)
    return chosen


def choice(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A question about the facts with labelled options; the answer is the label."""
    group = world.people(rng, size, part)
    document: Document = [(facts(rng, group), False)]
    asked = [(kind, person) for kind in QUESTIONS for person in group]
    for kind, person in rng.sample(asked, min(queries, len(asked))):
        ask, word, _ = question(kind, person)
        listed, labels = options(rng, distractors(rng, kind, word, group, rng.randint(2, 5)))
        lead = rng.choice((" Which label is right?", " Choice", " It is", ""))
        document += [
            (f"\n{ask} {listed}.{lead}", False),
            (f" {labels[word]}.", True),
        ]
        if rng.random() < 0.3:
            document += [(" The correct answer is", False), (f" {word}.", True)]
    return document


def repetition(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A random line said twice: the quickest way to learn to copy."""
    pool = (*world.NAMES, *world.PLACES, *world.THINGS, *world.GOODS, *"0123456789")
    line = " ".join(rng.choice(pool) for _ in range(rng.randint(6, 20)))
    again = rng.choice(("\nAgain:", "\nOnce more:"))
    return [(f"Say: {line}.{again}", False), (f" {line}.", True)]


Generator = Callable[..., Document]
PLAIN: dict[str, Generator] = {
    "lookup": lookup,
    "sums": sums,
    "problem": problem,
    "lettered": lettered,
    "choice": choice,
    "repetition": repetition,
}
