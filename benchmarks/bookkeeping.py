"""What dynamic layer selection costs per step beyond the work that it saves.

The time inside DLS's own code is measured from outside: its entries, which PyTorch's hooks call,
are wrapped by a clock. That it is all of them, a test checks. The choice is that of every layer,
so that a step is the same with it and without.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks.bench import SHAPES, Bench, Row
from benchmarks.contenders import CONTENDERS, MANY_STEPS, Contender, Training
from benchmarks.measure import Timing
from benchmarks.pages import table
from rosa import DlsConfig, DynamicLayerSelection
from rosa.dls.foreign_steps import ForeignSteps
from rosa.dls.freezing import LayerParameters

INTERVAL = 2  # so that every other step scores and chooses
CHOOSING = DlsConfig(k_ratio=1.0, interval=INTERVAL, warmup=0)
ENTRIES: Sequence[tuple[type, str]] = (
    (DynamicLayerSelection, "_before_step"),
    (DynamicLayerSelection, "_after_step"),
    (DynamicLayerSelection, "_note_gradient"),
    (LayerParameters, "drop_only_scored"),
    (ForeignSteps, "_on_gradient"),
)
ADAPTED = {
    "rosa": CONTENDERS["rosa"],
    "lora": CONTENDERS["lora"],
    "full": Contender("all weights of the layers", "layers"),
}


class OwnTime:
    """Seconds inside the entries of DLS, one within another counted once."""

    def __init__(self, wait: Callable[[], None], clock: Callable[[], float]) -> None:
        self.seconds, self._depth = 0.0, 0
        self._wait, self._clock = wait, clock

    @contextmanager
    def watching(self, entries: Sequence[tuple[type, str]] = ENTRIES) -> Iterator[OwnTime]:
        """Wraps the entries. What was registered as a hook before is not seen."""
        with ExitStack() as stack:
            for owner, name in entries:
                stack.enter_context(patch.object(owner, name, self._clocked(getattr(owner, name))))
            yield self

    def _clocked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def clocked(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return function(*args, **kwargs)
            self._wait()
            self._depth, begin = 1, self._clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._wait()
                self._depth = 0
                self.seconds += self._clock() - begin

        return clocked


def bookkeeping(bench: Bench) -> Iterator[Row]:
    """Of each method: a step between two choices, and one at which layers are chosen."""
    for name, contender in ADAPTED.items():
        kinds = steps(bench.trainee(bench.small, SHAPES[0], contender), 2 * bench.repeats, bench)
        for kind, timing in kinds.items():
            yield {
                "method": name,
                "title": contender.title,
                "size": bench.small,
                "batch": SHAPES[0][0],
                "length": SHAPES[0][1],
                "dtype": "float32",
                "kind": kind,
                "seconds": round(timing.median, 7),
                "share": round(timing.ratio, 6),
                "quartiles": [round(share, 6) for share in timing.spread],
                "repeats": len(timing.seconds),
            }


def steps(run: Training, count: int, bench: Bench) -> Mapping[str, Timing]:
    """DLS's own seconds of `count` steps as a share of the step's, after four that don't count."""
    own = OwnTime(bench.wait, time.perf_counter)
    inside: dict[str, list[float]] = {"between": [], "choosing": []}
    whole: dict[str, list[float]] = {"between": [], "choosing": []}
    with own.watching():
        run.dls = DynamicLayerSelection(run.model, run.optimizer, CHOOSING, MANY_STEPS)
        for step in range(-2 * INTERVAL, count):
            kind = "choosing" if run.dls.scoring else "between"
            bench.wait()
            own.seconds, begin = 0.0, time.perf_counter()
            run.step()
            bench.wait()
            if step >= 0:
                whole[kind].append(time.perf_counter() - begin)
                inside[kind].append(own.seconds)
        run.dls.detach()
    return {kind: Timing.of(inside[kind], whole[kind]) for kind in whole}


def bookkeeping_table(rows: Sequence[Row]) -> str:
    """Time in DLS and its share of the step."""
    kinds = {"between": "between two choices", "choosing": "with a choice"}
    cells = []
    for row in rows:
        low, high = (100 * value for value in row["quartiles"])
        cells.append(
            [
                row["title"],
                kinds[row["kind"]],
                f"{1e3 * row['seconds']:.2f} ms",
                f"{100 * row['share']:.2f} % ({low:.2f}-{high:.2f})",
            ]
        )
    return table(["", "a step", "inside DLS", "of the step"], cells)
