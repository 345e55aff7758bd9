"""Runs a model over token ids and measures the queries and keys that its attention sees.

Hooks sit where RoAE's do: on the last module before rotation, after RoAE's own. Squares are summed
as the text goes by; no activations are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rosa.errors import RosaError
from rosa.evaluate.generation import longest_first_batches
from rosa.inspect.strength import Array, frequencies, rotate, sum_of_squares
from rosa.roae.heads import split_heads
from rosa.roae.layer import RosaLayer
from rosa.rope import HookPoint, RopeLayout, detect_unknown, has_rope, layout_of
from rosa.rope.cos_sin import cos_sin_of


@dataclass(frozen=True)
class LayerStates:
    """The strength of one layer's states: root mean squares over tokens, after rotation."""

    index: int
    layout: RopeLayout
    frequencies: Array  # (ρ/2,), radians per token
    query: Array  # (h_q, head_dim)
    key: Array  # (h_kv, head_dim)


class Watcher(Protocol):
    """What a run of the model reports to: it hooks itself in and is told which tokens are real."""

    real_tokens: Tensor

    def hooks(self) -> Iterator[RemovableHandle]: ...


class StateWatcher:
    """Sums the squares of one attention module's rotated queries and keys."""

    real_tokens: Tensor

    def __init__(self, module: nn.Module, layout: RopeLayout) -> None:
        self.module = module
        self.layout = layout
        self.index = int(module.layer_idx)  # type: ignore[arg-type]
        self.frequencies: Array | None = None
        self.sums = {
            point: np.zeros((point.heads, layout.head_dim)) for point in (layout.query, layout.key)
        }
        self._rotation: tuple[Tensor, Tensor] | None = None

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hooks on the attention, for its rotation, and on its two hooked modules."""
        yield self.module.register_forward_pre_hook(self._note_rotation, with_kwargs=True)
        for point in self.sums:
            yield self._on_output(point)

    def states(self, tokens: int) -> LayerStates:
        """The strengths, over the number of real tokens that went by."""
        query, key = (np.sqrt(total / tokens) for total in self.sums.values())
        if not (np.isfinite(query).all() and np.isfinite(key).all()):
            raise RosaError(
                f"the queries or keys of layer {self.index} are not finite numbers; the weights "
                "are damaged or the dtype is too narrow for them"
            )
        assert self.frequencies is not None
        return LayerStates(self.index, self.layout, self.frequencies, query, key)

    def _note_rotation(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = arguments(module, args, kwargs)
        cos, sin = self._rotation = cos_sin_of(self.layout, module, given)
        if self.frequencies is None:
            self.frequencies = frequencies(cos, sin, self.layout)

    def _on_output(self, point: HookPoint) -> RemovableHandle:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            assert self._rotation is not None
            z = split_heads(output, point, self.layout.head_dim)
            rotated = rotate(z, *self._rotation, self.layout)
            self.sums[point] += sum_of_squares(rotated, self.real_tokens)

        return self.module.get_submodule(point.module).register_forward_hook(add)


def watch_states(model: nn.Module) -> list[StateWatcher]:
    """A watcher for each attention module that rotates, as far as RoSA knows or can detect.

    Raises RosaError for a model without RoPE, and for one whose rotation stays unknown.
    """
    reason = detect_unknown(model)
    found = [
        StateWatcher(module, layout)
        for module in model.modules()
        if not isinstance(module, RosaLayer) and (layout := layout_of(module)) is not None
    ]
    if not found:
        raise RosaError(_why_not(model, f"the model {reason}"))
    if any(watcher.layout.cos_sin is None for watcher in found):
        raise RosaError(_why_not(model, "its angles are computed out of reach"))
    return found


def arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a module's forward by name, however they came."""
    return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}


def run(
    model: Any, sequences: Sequence[Sequence[int]], watchers: Sequence[Watcher], batch_size: int
) -> int:
    """The model's forward over all token ids, watched; returns the number of tokens."""
    pad = model.config.get_text_config().pad_token_id or 0
    with hooked(watchers), torch.inference_mode():
        for batch in longest_first_batches([len(ids) for ids in sequences], batch_size):
            ids, real = padded([sequences[i] for i in batch], pad)
            for watcher in watchers:
                watcher.real_tokens = real
            try:
                model(
                    input_ids=ids.to(model.device),
                    attention_mask=real.to(model.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
            except torch.OutOfMemoryError as error:
                raise RosaError(
                    f"out of memory with {ids.shape[0]} texts of {ids.shape[1]} tokens; lower "
                    "--batch_size or --max_length"
                ) from error
    return sum(map(len, sequences))


def padded(rows: Sequence[Sequence[int]], value: int) -> tuple[Tensor, Tensor]:
    """(ids, which are real), int64 (rows, at least 2), short rows filled on the right.

    Two positions at least, so that the rotation between them can be read.
    """
    width = max(2, *map(len, rows))
    ids = torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, real


@contextmanager
def hooked(watchers: Sequence[Watcher]) -> Iterator[None]:
    """Every watcher's hooks in place; none is left afterwards."""
    with ExitStack() as stack:
        for watcher in watchers:
            for handle in watcher.hooks():
                stack.callback(handle.remove)
        yield


def _why_not(model: nn.Module, reason: str) -> str:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not has_rope(model):
        return (
            f"the model ({kind}) has no rotary position embeddings (RoPE), so it has no "
            "low-frequency dimensions to look at; use a model with RoPE"
        )
    return (
        f"rosa does not know how {kind} rotates its queries and keys and cannot measure it "
        f"({reason}); use another model"
    )
