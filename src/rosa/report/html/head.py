"""What was compared, how, where and with what: the head of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosa.compare.results import StudyResults
from rosa.report.tables.captions import protocol


def study_name(study: StudyResults) -> str:
    """The study's folder, as its grid or the disk names it."""
    return Path(str(study.grid.get("output_dir") or study.folder.resolve())).name or "study"


def summary(study: StudyResults) -> str:
    """What was compared, in a sentence or two."""
    if not study.runs:
        return "No run has finished."
    methods, seeds = len(study.names("method")), len(study.names("seed"))
    models, sets = study.names("model"), study.names("train_set")
    text = (
        f"{_count(methods, 'method')} on {_list(models, 'models')}, trained on "
        f"{_list(sets, 'training sets')}, with {_count(seeds, 'seed')} each."
    )
    keys = ("models", "methods", "training_sets", "seeds")
    planned = math.prod(len(study.grid.get(key) or ()) for key in keys)
    unfinished = len(study.runs) < planned
    return text + f" {len(study.runs)} of {planned} runs have finished." * unfinished


def seeds_in_order(study: StudyResults) -> list[int]:
    """The seeds that ran, as the grid orders them."""
    order = list(study.grid.get("seeds") or ())
    return sorted(study.names("seed"), key=lambda s: order.index(s) if s in order else len(order))


def facts(study: StudyResults) -> list[tuple[str, str]]:
    """(name, value) pairs for the head of the page; only what is known."""
    environment = study.environment
    known = [
        ("Models", ", ".join(study.names("model"))),
        ("Training sets", ", ".join(study.names("train_set"))),
        ("Seeds", ", ".join(map(str, seeds_in_order(study)))),
        ("Protocol", protocol(study)),
        ("Machine", _machine(environment)),
        ("Versions", _versions(environment)),
        ("Commit", environment.get("commit")),
        ("Date", environment.get("date")),
    ]
    return [(name, str(value)) for name, value in known if value]


def _machine(environment: dict[str, Any]) -> str:
    cores, device = environment.get("cores"), environment.get("device")
    parts = [environment.get("machine"), f"{cores} cores" if cores else None]
    return ", ".join(str(part) for part in (*parts, device if device != "cpu" else None) if part)


def _versions(environment: dict[str, Any]) -> str:
    versions = dict(environment.get("versions") or {})
    if environment.get("python"):
        versions["Python"] = environment["python"]
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _list(names: Sequence[str], nouns: str) -> str:
    """Up to three names; more are counted."""
    if len(names) > 3:
        return f"{len(names)} {nouns}"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
