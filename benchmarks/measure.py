"""Measures: bytes saved for backward, and timings side by side. Pure functions, no models here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def saved_bytes(step: Callable[[], Any], *, resident: Iterable[Tensor] = ()) -> int:
    """Bytes of the tensors that autograd keeps between the forward pass and the backward pass.

    Each storage counts once and in full, as it is kept in full, however many tensors view it.

    Args:
        step: runs a forward pass and returns what `backward` would start from, which keeps the
            graph alive meanwhile.
        resident: tensors that are in memory anyway, such as a model's parameters and buffers.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in resident}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # or an address could be given out twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()
    del result
    return sum(sizes.values())


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender; `ratios` are to the reference of the same round."""

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, own: Sequence[float], reference: Sequence[float]) -> Timing:
        """From seconds round by round."""
        return cls(tuple(own), tuple(a / b for a, b in zip(own, reference, strict=True)))

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of the ratios: what slows a whole round down cancels out of it."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles of the ratios."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high


def interleaved(
    contenders: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warmup: int = 2,
    before: Mapping[str, Callable[[int], Any]] | None = None,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every contender once per round, in an order that turns from round to round.

    Args:
        contenders: what to run, by name; the first is the reference of the ratios.
        repeats: rounds that count, after `warmup` rounds that don't.
        before: what a contender does ahead of each round, untimed; gets the round, from `-warmup`
            on, those that count from 0.
        wait: returns when all work is done, such as `torch.cuda.synchronize`.
        clock: seconds; `time.process_time` on a CPU that others use too, with one thread.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(-warmup, repeats):
        start = round_ % len(names)
        for name in names[start:] + names[:start]:
            if before and name in before:
                before[name](round_)
            wait()
            begin = clock()
            contenders[name]()
            wait()
            if round_ >= 0:
                seconds[name].append(clock() - begin)
    reference = seconds[names[0]]
    return {name: Timing.of(own, reference) for name, own in seconds.items()}


def figures(timing: Timing) -> dict[str, Any]:
    """A timing for the JSON."""
    low, high = timing.spread
    return {
        "seconds": round(timing.median, 6),
        "ratio": round(timing.ratio, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "repeats": len(timing.seconds),
    }
