"""Training runs that are interrupted, and what they leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rosa.train.trainer import GuardedTrainer


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same_adapter(left: Path, right: Path) -> bool:
    """Whether two folders hold the same adapter, bit by bit."""
    one, two = adapter(left), adapter(right)
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Inside, a run gets a Ctrl-C in the middle of the given optimizer step."""
    training_step = GuardedTrainer.training_step
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(self: GuardedTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.state.global_step == step - 1:
                patch.setattr(GuardedTrainer, "training_step", training_step)
                signal.raise_signal(signal.SIGINT)
            return training_step(self, *args, **kwargs)

        patch.setattr(GuardedTrainer, "training_step", interrupt)
        yield
