"""What rosa-tiny reads in pretraining: short documents with many questions about a few facts.

Nothing to run here; `python -m pretraining.pretrain` uses it.

A document is a list of (text, is_answer) pieces. The answers are what a reader of the rest could
know, so they weigh more in the loss, and the skills are measured on them. Supervision is dense on
purpose: so small a model learns to look things up only where many answers hang on few facts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pretraining import world
from pretraining.world import Change, Person

Piece = tuple[str, bool]
Document = list[Piece]

QUESTIONS = ("where", "what", "who")


def place_fact(person: Person) -> str:
    return f"{person.name} visits {person.place}."


def thing_fact(person: Person) -> str:
    if person.keeps:
        return f"The {person.thing} is {person.name}'s."
    return f"{person.name} likes {person.thing}."


def facts(rng: random.Random, people: Sequence[Person], of: str = "places things") -> str:
    """Every place and every thing, in any order."""
    told = [place_fact(p) for p in people] if "places" in of else []
    told += [thing_fact(p) for p in people] if "things" in of else []
    rng.shuffle(told)
    return " ".join(told)


def question(kind: str, person: Person) -> tuple[str, str, str]:
    """A question, its answer in a word, and in a sentence with a gap for that word."""
    return {
        "where": (f"Where is {person.name}?", person.place, f"{person.name} visits {{}}."),
        "what": (f"What does {person.name} like?", person.thing, f"{person.name} likes {{}}."),
        "who": (f"Who has the {person.thing}?", person.name, f"The {person.thing} is {{}}'s."),
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
            before, after = sentence.split(" {}")
            document += [(f"\n{ask} {before}", False), (f" {word}", True), (after, False)]
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
    for first, second in rng.sample(told, size):
        if rng.random() < 0.5:
            document += [*said_again(f"\n{first}"), *said_again(f" {second}")]
    for change in rng.sample(group, min(queries, size)):
        document += [
            (f"\nHow many {change.goods} does {change.name} have now?", False),
            (f" {change.calculation}.", True),
            (f" {change.name} has", False),
            (f" {change.result} {change.goods}.", True),
        ]
    return document


def said_again(sentence: str) -> Document:
    """A sentence of the story begun again: what follows its first two words is an answer."""
    begun, verb, rest = re.match(r"(\s?\S+)( \S+)( .*)", sentence).groups()
    return [(begun + verb, False), (rest, True)]


LABELS = (
    tuple("12345"),
    tuple("abcde"),
    tuple("ABCDE"),
    *2 * (("label1", "label2", "label3", "label4", "label5"),),
)
NUMBERS = tuple(map(str, range(2, 21)))
LABEL_FORMS = ("{} ({})", "{}: {}", "{}: {}", "{} is {}")


@dataclass(frozen=True)
class Options:
    """A labeled list."""

    labels: dict[str, str]
    form: str

    def __str__(self) -> str:
        return ", ".join(self.form.format(word, label) for word, label in self.labels.items())

    def concluded(self, word: str, after: str = ".") -> Document:
        """The word that was chosen, and then its label."""
        label = self.labels[word]
        return [(f" {word}", True), (f"{after} The label is", False), (f" {label}.", True)]

    def restated(self, word: str, chosen: bool = False) -> Document:
        """One entry said again: the word, an answer too if it was `chosen`, then its label."""
        between, after = self.form.format("", "|").split("|")
        space = " " if between.endswith(" ") else ""
        return [
            (f" {word}", chosen),
            (between.rstrip(), False),
            (f"{space}{self.labels[word]}{after}.", True),
        ]


def options(rng: random.Random, words: Sequence[str]) -> Options:
    """These words with labels of one kind, in order or not."""
    labels = list(rng.choice(LABELS)[: len(words)])
    if rng.random() < 0.4:  # else a position would give the label away
        rng.shuffle(labels)
    return Options(dict(zip(words, labels, strict=True)), rng.choice(LABEL_FORMS))


def lettered(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A labeled list alone: which label has which word."""
    words = rng.sample((*world.NAMES, *world.PLACES, *world.THINGS), rng.randint(2, 5))
    listed = options(rng, words)
    document: Document = [(f"The choices are {listed}.\n", False)]
    for word in rng.sample(words, len(words))[:queries]:
        if rng.random() < 0.5:
            document += listed.restated(word)
        else:
            lead = rng.choice((f" Which label has {word}?", f" {word}. The label is"))
            document += [(lead, False), (f" {listed.labels[word]}.", True)]
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
    """Questions about the facts with labeled options; the answer is the word, then its label."""
    group = world.people(rng, size, part)
    kind = rng.choice(questions(group))[0]
    asked = [person for other, person in questions(group) if other == kind]
    word = question(kind, asked[0])[1]
    listed = options(rng, distractors(rng, kind, word, group, rng.randint(size, 5)))
    document: Document = [(f"{facts(rng, group)} The choices are {listed}.", False)]
    listed_people = [p for p in asked if question(kind, p)[1] in listed.labels]
    for person in rng.sample(listed_people, min(queries, len(listed_people))):
        ask, word, sentence = question(kind, person)
        if rng.random() < 0.5:
            before, after = sentence.split(" {}")
            document += [(f"\n{ask} {before}", False), *listed.concluded(word, after)]
        elif rng.random() < 0.5:
            document += [(f"\n{ask}", False), *listed.concluded(word)]
        else:
            document += [(f"\n{ask}", False), *listed.restated(word, chosen=True)]
    return document


def repetition(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """A random line said twice: the quickest way to learn to copy."""
    pool = (*world.NAMES, *world.PLACES, *world.THINGS, *world.GOODS, *"0123456789")
    line = " ".join(rng.choice(pool) for _ in range(rng.randint(6, 20)))
    again = rng.choice(("\nAgain:", "\nOnce more:"))
    return [(f"Say: {line}.{again}", False), (f" {line}.", True)]


def told_pairs(rng: random.Random, between: str, mixed: bool) -> tuple[str, list[tuple[str, str]]]:
    """Two to five words, most often names, each with another word or a label of its own."""
    size = rng.randint(2, 5)
    left, right = world.NAMES, rng.choice((world.PLACES, world.THINGS))
    if mixed and rng.random() < 0.8:
        left = rng.choice((world.NAMES, (*world.NAMES, *world.PLACES, *world.THINGS)))
        right = rng.choice((*LABELS, NUMBERS, NUMBERS, right))
    told = list(zip(rng.sample(left, size), rng.sample(right, size), strict=True))
    return "Pairs:" + ",".join(f" {a}{between} {b}" for a, b in told) + ".", told


def pairs(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Words in pairs and which follows which: looking up in its barest form."""
    text, told = told_pairs(rng, "", mixed=False)
    document: Document = [(text, False)]
    for a, b in rng.sample(told, len(told)):
        document += [(f" {a}", False), (f" {b}.", True)]
    return document


def forward(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Pairs with a word between them, asked with and without it."""
    between = rng.choice(("", ":", ":", " is", " has", " has", " likes", " visits"))
    text, told = told_pairs(rng, between, mixed=True)
    document: Document = [(text, False)]
    for a, b in rng.sample(told, len(told)):
        document += [(rng.choice((f" {a}{between}", f" {a}?")), False), (f" {b}.", True)]
    return document


def kept(rng: random.Random, size: int, queries: int, part: str = "pretraining") -> Document:
    """Things and whom they are with: the one kind of fact whose end is a name."""
    size = rng.randint(2, 4)
    told = list(zip(rng.sample(world.THINGS, size), rng.sample(world.NAMES, size), strict=True))
    document: Document = [(" ".join(f"The {a} is {b}'s." for a, b in told), False)]
    for a, b in rng.sample(told, size):
        ask, after = rng.choice(
            ((f"\nWho has the {a}?", "."), (f" The {a} is", "'s."), (f" {a}?", "."))
        )
        document += [(ask, False), (f" {b}", True), (after, False)]
    return document


Generator = Callable[..., Document]
PLAIN: dict[str, Generator] = {
    "lookup": lookup,
    "who": partial(lookup, kinds=("who",)),  # the hardest of the three: the answer is a name
    "sums": sums,
    "problem": problem,
    "lettered": lettered,
    "choice": choice,
    "repetition": repetition,
    "pairs": pairs,
    "forward": forward,
    "kept": kept,
}
