"""The targets, what was measured, and the same in operations of matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.arithmetic import Arithmetic
from benchmarks.pages import by_place, table

Row = dict[str, Any]
STEP, SAVED = "step / frozen model", "saved for backward / frozen model"
LORA = "LoRA, all linears, r=16"
HALF, DRAWN = "RoSA + DLS, k 0.5", "RoSA + DLS, k 0.5, as drawn"
# Whose, which ratio, at most, and in operations (of drawn layers it depends on the lowest).
TARGETS: Sequence[tuple[str, str, float, Callable[[Arithmetic], float] | None]] = (
    ("RoSA", STEP, 1.05, Arithmetic.rosa_step),
    (HALF, STEP, 1.03, lambda counted: counted.rosa_step(0.5)),
    (DRAWN, STEP, 1.03, None),
    ("RoSA", SAVED, 1.20, None),
    (HALF, SAVED, 1.10, None),
    (DRAWN, SAVED, 1.10, None),
)
LORA_BY_ROSA = 1.40
PREFILL, DECODE, DECODE_MANY = 1.04, 1.10, 1.05
MISSED = " ✗"
NONE = "–"


def targets(found: Mapping[str, Any]) -> str:
    """Of training, in float32, and of inference."""
    first = training_targets(found["methods"]["rows"])
    return f"{first}\n\n{inference_targets(found['decode']['rows'])}"


def training_targets(rows: Sequence[Row]) -> str:
    """By size and shape; what was not measured there is left out."""
    places = [(w, r) for w, r in by_place(rows) if r[0]["dtype"] == "float32"]
    by_title = [{row["title"]: row for row in here} for _, here in places]
    counted = [Arithmetic(here[0]["size"], here[0]["length"]) for _, here in places]
    cells = []
    for title, what, most, operations in TARGETS:
        if any(title in here for here in by_title):
            cells.append([f"{title}: {what}", f"≤ {most:.2f}"])
            for here, own in zip(by_title, counted, strict=True):
                value = _of_floor(here, title, what) if title in here else None
                cells[-1].append(judged(value, most, operations(own) if operations else None))
    cells.append([f"step of {LORA} / RoSA", f"≥ {LORA_BY_ROSA:.2f}"])
    for here, own in zip(by_title, counted, strict=True):
        ratio = here[LORA]["seconds"] / here["RoSA"]["seconds"]
        cells[-1].append(judged(ratio, LORA_BY_ROSA, own.lora_by_rosa(), at_least=True))
    cells.append([f"saved: RoSA / {LORA}", "< 1"])
    for here in by_title:
        cells[-1].append(judged(here["RoSA"]["saved_bytes"] / here[LORA]["saved_bytes"], 1))
    return table(["training", "aim", *(where for where, _ in places)], cells)


def inference_targets(rows: Sequence[Row]) -> str:
    """By size and shape."""
    places = list(by_place(rows))
    cells = []
    for title in ("RoSA", "RoSA, `pre`"):
        for what in ("decode", "prefill"):
            aim = f"≤ {PREFILL:.2f}"
            if what == "decode":
                aim = f"≤ {DECODE:.2f} at batch 1, {DECODE_MANY:.2f} at 32"
            cells.append([f"{title}: {what} / bare model", aim])
            for _, here in places:
                row = next(row for row in here if row["title"] == title)
                counted = Arithmetic(row["size"], row["length"])
                most, operations = PREFILL, counted.prefill()
                if what == "decode":
                    most = DECODE if row["batch"] == 1 else DECODE_MANY
                    operations = counted.decode()
                cells[-1].append(judged(row[what]["ratio"], most, operations))
    return table(["inference", "aim", *(where for where, _ in places)], cells)


def judged(
    value: float | None, aim: float, operations: float | None = None, at_least: bool = False
) -> str:
    """A ratio, crossed where it misses the aim; in parentheses that of operations, likewise."""
    if value is None:
        return NONE

    def crossed(ratio: float) -> str:
        missed = ratio < aim - 0.005 if at_least else ratio > aim + 0.005
        return f"{ratio:.2f}{MISSED if missed else ''}"

    return crossed(value) + ("" if operations is None else f" ({crossed(operations)})")


def _of_floor(rows: Mapping[str, Row], title: str, what: str) -> float:
    if what == STEP:
        return rows[title]["ratio"]
    return rows[title]["saved_bytes"] / rows["frozen model"]["saved_bytes"]
