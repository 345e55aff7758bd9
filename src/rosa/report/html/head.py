"""What was compared, how, where and with what: the head and the small sections of the page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.compare.results import StudyResults


@dataclass(frozen=True)
class Tuned:
    """The learning rates that one method could choose from, with their validation losses."""

    method: str
    losses: tuple[float | None, ...]  # in the order of the rates; None where there is none
    chosen: int | None  # its place among the rates


@dataclass(frozen=True)
class Tuning:
    """One model and training set: rates across, methods down."""

    model: str
    train_set: str
    rates: tuple[str, ...]
    methods: tuple[Tuned, ...]


def study_name(study: StudyResults) -> str:
    """The study's folder, as its grid or the disk names it."""
    return Path(str(study.grid.get("output_dir") or study.folder.resolve())).name or "study"


def sentence(study: StudyResults) -> str:
    """What was compared, in one sentence."""
    methods, seeds = len(study.names("method")), len(study.names("seed"))
    models, sets = study.names("model"), study.names("train_set")
    told = (
        f"{_count(methods, 'method')} on {_list(models, 'models')}, trained on "
        f"{_list(sets, 'training sets')}, with {_count(seeds, 'seed')} each."
    )
    keys = ("models", "methods", "training_sets", "seeds")
    asked = math.prod(len(study.grid.get(key) or ()) for key in keys)
    if len(study.runs) < asked:
        told += f" {len(study.runs)} of {asked} runs have finished."
    return told


def seeds_in_order(study: StudyResults) -> list[int]:
    """The seeds that ran, as the grid orders them."""
    asked = list(study.grid.get("seeds") or ())
    return sorted(study.names("seed"), key=lambda s: asked.index(s) if s in asked else len(asked))


def facts(study: StudyResults) -> list[tuple[str, str]]:
    """(name, value) pairs for the head of the page; only what is known."""
    place = study.environment
    known = [
        ("Models", ", ".join(study.names("model"))),
        ("Training sets", ", ".join(study.names("train_set"))),
        ("Seeds", ", ".join(map(str, seeds_in_order(study)))),
        ("Protocol", protocol(study)),
        ("Machine", _machine(place)),
        ("Versions", _versions(place)),
        ("Commit", place.get("commit")),
        ("Date", place.get("date")),
    ]
    return [(name, str(value)) for name, value in known if value]


def protocol(study: StudyResults) -> str:
    """How the questions were asked and the answers read; of the first evaluation that tells."""
    asked = dict(study.grid.get("evaluate") or {})
    for run in study.runs:
        file = study.folder / run.folder / "evaluation" / "run.json"
        if file.is_file():
            asked |= json.loads(file.read_text(encoding="utf-8"))
            break
    beams, limit, shots = asked.get("num_beams", 1), asked.get("limit"), asked.get("num_fewshot")
    parts = [
        asked.get("protocol"),
        f"{asked['prompt']} prompts" if asked.get("prompt") else None,
        f"{_count(shots, 'example')} before each question" if shots else None,
        "greedy" if beams == 1 else f"{beams} beams",
        None if asked.get("full_responses", True) else "responses up to their answer",
        f"a sample of {limit} questions per task" if limit else "all questions",
        asked.get("dtype"),
    ]
    return ", ".join(str(part) for part in parts if part)


def tunings(study: StudyResults) -> list[Tuning]:
    """The learning-rate trials as tables."""
    titles = {run.method: run.title for run in study.runs}
    groups = dict.fromkeys((t["model"], t["train_set"]) for t in study.tuning)
    found = []
    for model, train_set in groups:
        own = [t for t in study.tuning if (t["model"], t["train_set"]) == (model, train_set)]
        rates = sorted({float(rate) for t in own for rate in t["losses"]})
        methods = tuple(_tuned(t, titles, rates) for t in own)
        found.append(Tuning(model, train_set, tuple(f"{rate:g}" for rate in rates), methods))
    return found


def _tuned(record: dict[str, Any], titles: dict[str, str], rates: Sequence[float]) -> Tuned:
    losses = {float(rate): loss for rate, loss in record["losses"].items()}
    chosen = record.get("chosen")
    return Tuned(
        titles.get(record["method"], record["method"]),
        tuple(losses.get(rate) for rate in rates),
        None if chosen is None else rates.index(float(chosen)),
    )


def _machine(place: dict[str, Any]) -> str:
    cores = place.get("cores")
    device = place.get("device")
    parts = [
        place.get("machine"),
        f"{cores} cores" if cores else None,
        device if device != "cpu" else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _versions(place: dict[str, Any]) -> str:
    versions = dict(place.get("versions") or {})
    if place.get("python"):
        versions["Python"] = place["python"]
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _list(names: Sequence[str], nouns: str) -> str:
    """Few names are told, many are counted."""
    if len(names) > 3:
        return f"{len(names)} {nouns}"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
