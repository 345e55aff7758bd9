"""Short training runs, some of them interrupted, and what they leave."""

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

from rosa.train.recipe import Recipe
from rosa.train.trainer import GuardedTrainer
from tests.support.tiny_folder import write_model_folder


def write_inputs(folder: Path, rows: list[dict[str, Any]], **shape: int) -> Path:
    """`folder` with a tiny Llama in `model` and its training rows in `rows.json`."""
    write_model_folder(folder / "model", **shape)
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def make_recipe(place: Path, output_dir: Path, **keys: Any) -> Recipe:
    """A recipe on what `write_inputs` wrote; logs every step, has no tracker."""
    inputs = {"model": str(place / "model"), "data": str(place / "rows.json")}
    short = {"log_steps": 1, "precision": "float32", "report_to": []}
    return Recipe(**{**inputs, "output_dir": str(output_dir), **short, **keys})


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(folder: Path, key: str = "loss") -> list[Any]:
    """What a run has logged of `loss`, `eval_loss`, `num_tokens` or another key, in order."""
    return [line[key] for line in read_lines(folder / "metrics.jsonl") if key in line]


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
