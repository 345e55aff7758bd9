"""The order of training rows: shuffled, with rows of similar length in one optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

STEPS_PER_WINDOW = 50


def pass_epochs_to_sampler(loader: Any) -> None:
    """Lets `set_epoch` of Accelerate's data loader reach its sampler, whatever wraps it.

    Of several processes, a loader that skips what a resumed run has trained on would not find it,
    and repeat the order of the first epoch.
    """
    batches = loader.batch_sampler
    if not hasattr(batches, "sampler") and hasattr(batches, "batch_sampler"):
        batches.sampler = batches.batch_sampler.sampler


class LengthGroupedSampler(Sampler[int]):
    """Shuffles the rows, sorts each window of 50 steps by length, shuffles the steps of the window.

    Each run of `rows_per_step` indices has rows of similar length, sorted, so that micro-batches
    cut from it have little padding. The step with the longest row comes first, so that a run that
    needs too much memory fails at once. The order depends on seed and epoch alone, so that a
    resumed run has it again and any number of processes share the same steps.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths)
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._lengths), generator=generator)
        steps: list[torch.Tensor] = []
        for window in order.split(STEPS_PER_WINDOW * self._rows_per_step):
            by_length = window[self._lengths[window].argsort(descending=True, stable=True)]
            cut = by_length.split(self._rows_per_step)
            # What is left over for a short last step stays last.
            whole = [step for step in cut if len(step) == self._rows_per_step]
            drawn = torch.randperm(len(whole), generator=generator).tolist()
            steps += [whole[i] for i in drawn] + list(cut[len(whole) :])
        longest = max(range(len(steps)), key=lambda i: int(self._lengths[steps[i][0]]))
        if len(steps[longest]) == self._rows_per_step:
            steps.insert(0, steps.pop(longest))
        return iter(torch.cat(steps).tolist())
