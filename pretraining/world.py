"""The toy world of rosa-tiny: a few people, places, things and numbers up to twenty.

Nothing to run here; `python -m pretraining.pretrain` uses it.

A world is a handful of people; each visits a place, and likes a thing or has it with them. By a
checksum of its facts every world belongs to one of three parts that never meet: what the model is
pretrained on, what it is fine-tuned on, and what it is tested on.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

NAMES = (
    "Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gus", "Hana",
    "Ivan", "Jane", "Kim", "Leo", "Mia", "Nick", "Olga", "Paul",
)  # fmt: skip
PLACES = (
    "Rome", "Paris", "Oslo", "Cairo", "Lima", "Delhi",
    "Kyoto", "Quito", "Dublin", "Vienna", "Madrid", "Boston",
)  # fmt: skip
THINGS = (
    "tea", "milk", "bread", "rice", "honey", "soup",
    "cheese", "cake", "fish", "corn", "jam", "salt",
)  # fmt: skip
GOODS = ("apples", "pears", "plums", "eggs", "coins", "shells", "cards", "nuts")
LARGEST = 20

PARTS = ("pretraining", "finetuning", "test")


def part_of(facts: object) -> str:
    """The part a world or a sum belongs to: eight tenths, one tenth, one tenth."""
    bucket = zlib.crc32(repr(facts).encode()) % 10
    return PARTS[max(0, bucket - 7)]


@dataclass(frozen=True)
class Person:
    name: str
    place: str
    thing: str
    keeps: bool  # has the thing with them, or only likes it


@dataclass(frozen=True)
class Change:
    """Someone has `start` of something, and `by` are added or taken away."""

    name: str
    goods: str
    start: int
    by: int
    adds: bool

    @property
    def result(self) -> int:
        return self.start + self.by if self.adds else self.start - self.by

    @property
    def sign(self) -> str:
        return "+" if self.adds else "-"

    @property
    def calculation(self) -> str:
        return f"{self.start} {self.sign} {self.by} = {self.result}"


def people(rng: random.Random, size: int, part: str = "pretraining") -> list[Person]:
    """`size` people with different names, places and things, from a world of that part."""
    while True:
        world = [
            Person(*facts)
            for facts in zip(
                rng.sample(NAMES, size),
                rng.sample(PLACES, size),
                rng.sample(THINGS, size),
                rng.choices((True, False), k=size),
                strict=True,
            )
        ]
        if part_of(sorted(map(repr, world))) == part:
            return world


def operands(rng: random.Random, adds: bool, largest: int = LARGEST) -> tuple[int, int]:
    """Two numbers whose sum (or difference) stays between 0 and `largest`."""
    top = rng.randint(0, largest)
    below = rng.randint(0, top)
    return (below, top - below) if adds else (top, below)


def pair_part(start: int, by: int, adds: bool) -> str:
    """Fine-tuning and test have different number pairs; pretraining has all of them."""
    return "test" if zlib.crc32(repr((start, by, adds)).encode()) % 5 == 0 else "finetuning"


def changes(rng: random.Random, size: int, part: str = "pretraining") -> list[Change]:
    """`size` people who count something; outside pretraining the number pairs are parted too."""
    found: list[Change] = []
    names, goods = rng.sample(NAMES, size), rng.sample(GOODS, size)
    while len(found) < size:
        adds = rng.random() < 0.5
        start, by = operands(rng, adds)
        change = Change(names[len(found)], goods[len(found)], start, by, adds)
        if min(start, by, change.result) < 2:  # "1 apples" is no English
            continue
        if part != "pretraining" and pair_part(start, by, adds) != part:
            continue
        if part_of(change) == part:
            found.append(change)
    return found
