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

QUESTIONS = ("where", "what", "who")


def place_fact(person: Person) -> str:
    return f"{person.name} visits {person.place}."


def thing_fact(person: Person) -> str:
    if person.keeps:
        return f"The {person.thing} is with {person.name}."
    return f"{person.name} likes {person.thing}."


def facts(rng: random.Random, people: Sequence[Person], of: str = "places things") -> str:
    """Every place and every thing, in any order."""
    told = [place_fact(p) for p in people] if "places" in of else []
    told += [thing_fact(p) for p in people] if "things" in of else []
    rng.shuffle(told)
    return " ".join(told)


def question(kind: str, person: Person) -> tuple[str, str, str]:
    """A question, its answer in a word, and in a sentence up to that word."""
    return {
        "where": (f"Where is {person.name}?", person.place, f"{person.name} visits"),
        "what": (f"What does {person.name} like?", person.thing, f"{person.name} likes"),
        "who": (f"Who has the {person.thing}?", person.name, f"The {person.thing} is with"),
    }[kind]


def questions(people: Sequence[Person]) -> list[tuple[str, Person]]:
    """Everything that a story about them answers in the direction in which it is told."""
    where = [("where", person) for person in people]
    return where + [("who" if person.keeps else "what", person) for person in people]


def lookup(rng: random.Random, size: int, queries: int, part: str = "pretraining",
           kinds: Sequence[str] = QUESTIONS) -> Document:  # fmt: skip
    """Facts about `size` people, then questions with short answers or sentences."""
    group = world.people(rng, size, part)
    asked = [(kind, person) for kind, person in questions(group) if kind in kinds]
    if not asked:
        return lookup(rng, size, queries, part, kinds)
    of = "places things"
    if len(kinds) > 1 and rng.random() < 0.4:  # stories of one kind are shorter and denser
        of = rng.choice(("places", "things"))
        asked = [(kind, person) for kind, person in asked if (kind == "where") == (of == "places")]
    document: Document = [(facts(rng, group, of), False)]
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
LABEL_FORMS = ("{} ({})", "{}: {}", "{} is {}")


def options(rng: random.Random, words: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A labelled list of `words`, and the label of each."""
    labels = dict(zip(words, rng.choice(LABELS), strict=False))
    form = rng.choice(LABEL_FORMS)
    return ", ".join(form.format(word, label) for word, label in labels.items()), labels


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
    asked = questions(group)
    for kind, person in rng.sample(asked, min(queries, len(asked))):
        ask, word, _ = question(kind, person)
        listed, labels = options(rng, distractors(rng, kind, word, group, rng.randint(2, 5)))
        lead = rng.choice((" Which label is right?", " Choice", " It is", ""))
        document.append((f"\n{ask} {listed}.{lead}", False))
        if rng.random() < 0.4:  # in two steps
            document += [(f" {word}", True), (" has the label", False)]
        document.append((f" {labels[word]}.", True))
        if rng.random() < 0.2:
            document += [(" The correct answer is", False), (f" {word}.", True)]
    return document


def repetition(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A random line said twice: the quickest way to learn to copy."""
    pool = (*world.NAMES, *world.PLACES, *world.THINGS, *world.GOODS, *"0123456789")
    line = " ".join(rng.choice(pool) for _ in range(rng.randint(6, 20)))
    again = rng.choice(("\nAgain:", "\nOnce more:"))
    return [(f"Say: {line}.{again}", False), (f" {line}.", True)]


def told_pairs(rng: random.Random, between: str) -> tuple[str, list[tuple[str, str]]]:
    """Two to five names, each with a word of its own."""
    size = rng.randint(2, 5)
    right = rng.sample(rng.choice((world.PLACES, world.THINGS)), size)
    told = list(zip(rng.sample(world.NAMES, size), right, strict=True))
    return "Pairs:" + ",".join(f" {a}{between} {b}" for a, b in told) + ".", told


def pairs(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Words in pairs and which follows which: looking up in its barest form."""
    text, told = told_pairs(rng, "")
    document: Document = [(text, False)]
    for a, b in rng.sample(told, len(told)):
        document += [(f" {a}", False), (f" {b}.", True)]
    return document


def forward(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Pairs with a word between them, asked with and without it."""
    between = rng.choice(("", ":", " likes", " visits"))
    text, told = told_pairs(rng, between)
    document: Document = [(text, False)]
    for a, b in rng.sample(told, len(told)):
        document += [(rng.choice((f" {a}{between}", f" {a}?")), False), (f" {b}.", True)]
    return document


def backward(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """The same pairs, asked from the second word to the first."""
    text, told = told_pairs(rng, rng.choice(("", "", " likes", " visits")))
    document: Document = [(text, False)]
    for a, b in rng.sample(told, len(told)):
        document += [(f" {b}?", False), (f" {a}.", True)]
    return document


Generator = Callable[..., Document]
PLAIN: dict[str, Generator] = {
    "lookup": lookup,
    "sums": sums,
    "problem": problem,
    "lettered": lettered,
    "choice": choice,
    "repetition": repetition,
    "pairs": pairs,
    "forward": forward,
    "backward": backward,
}
