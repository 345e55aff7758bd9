"""One device, and how a training step and decoding are measured on it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.contenders import DECODING, SIZES, Contender, Inference, Training
from benchmarks.measure import Timing, figures, interleaved, saved_bytes

Row = dict[str, Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = ((4, 256), (1, 1024))
TOKENS = 8  # decoded at a time


class Bench:
    """A device, and how often everything is repeated on it.

    Attributes:
        small: the model of most tables; `large` is another one where the device is a CPU.
    """

    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.small = "2048x16" if device == "cuda" else "512x8"
        self.large = "2048x16" if device == "cuda" else "1024x6"

    def wait(self) -> None:
        """Returns when all work is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(
        self, work: Mapping[str, Callable[[], Any]], often: int = 1, **options: Any
    ) -> dict[str, Timing]:
        """Side by side, `often` times as often as a training step."""
        return interleaved(work, often * self.repeats, wait=self.wait, **options)

    def training(
        self,
        size: str,
        shape: tuple[int, int],
        contenders: Mapping[str, Contender],
        dtype: str = "float32",
        often: int = 1,
    ) -> list[Row]:
        """Time of a training step and bytes saved for backward, of each contender."""
        where = {"size": size, "batch": shape[0], "length": shape[1], "dtype": dtype}
        runs = {name: self.trainee(size, shape, c, dtype) for name, c in contenders.items()}
        saved = {name: self._saved(run) for name, run in runs.items()}
        peaks = {name: self._peak(run) for name, run in runs.items()}
        timings = self.timed(
            {name: run.step for name, run in runs.items()},
            often,
            before={name: run.begin for name, run in runs.items()},
        )
        return [
            {
                "contender": name,
                "title": contenders[name].title,
                **where,
                "trainable": run.trainable,
                "saved_bytes": saved[name],
                "peak_bytes": peaks[name],
                **figures(timings[name]),
            }
            for name, run in runs.items()
        ]

    def inference(self, size: str, batch: int, prompt: int, dtype: str = "float32") -> list[Row]:
        """Time of reading a prompt, and of some tokens after it."""
        where = {"size": size, "batch": batch, "length": prompt, "dtype": dtype}
        models = {
            name: Inference(contender, self.model(size, dtype), batch, prompt)
            for name, contender in DECODING.items()
        }
        prefill = self.timed({name: model.prefill for name, model in models.items()})
        decode = self.timed({name: model.decode for name, model in models.items()}, 3)
        return [
            {
                "contender": name,
                "title": DECODING[name].title,
                **where,
                "prefill": figures(prefill[name]),
                "decode": figures(decode[name]),
            }
            for name in models
        ]

    def model(self, size: str, dtype: str = "float32") -> Any:
        return SIZES[size].build(DTYPES[dtype], self.device)

    def trainee(
        self, size: str, shape: tuple[int, int], contender: Contender, dtype: str = "float32"
    ) -> Training:
        """A contender on random tokens, the same for all."""
        torch.manual_seed(1)
        batch = torch.randint(0, SIZES[size].vocabulary, shape, device=self.device)
        return Training(contender, self.model(size, dtype), batch)

    def _saved(self, run: Training) -> int:
        """Bytes; where rounds differ, the median over the first `repeats` of them."""
        found = []
        for round_ in range(self.repeats if run.changes else 1):
            run.begin(round_)
            found.append(saved_bytes(run.forward, resident=run.resident()))
        return round(statistics.median(found))

    def _peak(self, run: Training) -> int | None:
        """Of a step, beyond what is resident; on a CPU the part `host_memory` tells it."""
        if self.device != "cuda":
            return None
        run.step()  # the optimizer's state is there from now on
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
