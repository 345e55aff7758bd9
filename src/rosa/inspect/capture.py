"""Runs a model with hooks that measure the queries and keys which its attention sees.

The hooks are where RoAE's are: on the last module before rotation, after RoAE's own. Squares are
summed batch by batch; no activations are kept.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from rosa.attention.heads import split_heads
from rosa.attention.layer import AttentionLayer
from rosa.errors import RosaError
from rosa.evaluate.generation import longest_first_batches
from rosa.inspect.strength import Array, pair_frequencies, rotate, sum_of_squares
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


class QueryKeyRecorder:
    """Sums the squares of one attention module's rotated queries and keys."""

    real_tokens: Tensor

    def __init__(self, module: nn.Module, layout: RopeLayout) -> None:
        self.module = module
        self.layout = layout
        self.index = int(module.layer_idx)  # type: ignore[arg-type]
        self.frequencies: Array | None = None
        points = (layout.query, layout.key)
        self.sums = {point: np.zeros((point.heads, layout.head_dim)) for point in points}
        self._rotation: tuple[Tensor, Tensor] | None = None

    def hooks(self) -> Iterator[RemovableHandle]:
        """Hooks on the attention module, for its rotation, and on those of queries and keys."""
        yield self.module.register_forward_pre_hook(self._record_rotation, with_kwargs=True)
        for point in self.sums:
            yield self._on_output(point)

    def states(self, tokens: int) -> LayerStates:
        """The strengths, over the number of real tokens seen."""
        query, key = (np.sqrt(total / tokens) for total in self.sums.values())
        if not (np.isfinite(query).all() and np.isfinite(key).all()):
            raise RosaError(
                f"the queries or keys of layer {self.index} are not finite numbers; the weights "
                "are damaged or the dtype is too narrow for them"
            )
        assert self.frequencies is not None
        return LayerStates(self.index, self.layout, self.frequencies, query, key)

    def _record_rotation(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = forward_arguments(module, args, kwargs)
        cos, sin = self._rotation = cos_sin_of(self.layout, module, given)
        if self.frequencies is None:
            self.frequencies = pair_frequencies(cos, sin, self.layout)

    def _on_output(self, point: HookPoint) -> RemovableHandle:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            assert self._rotation is not None
            z = split_heads(output, point, self.layout.head_dim)
            rotated = rotate(z, *self._rotation, self.layout)
            self.sums[point] += sum_of_squares(rotated, self.real_tokens)

        return self.module.get_submodule(point.module).register_forward_hook(add)


def query_key_recorders(model: nn.Module) -> list[QueryKeyRecorder]:
    """A recorder for each attention module that rotates.

    Raises RosaError for a model without RoPE, and for one whose rotation is unknown and cannot be
    measured.
    """
    reason = detect_unknown(model)
    found = [
        QueryKeyRecorder(module, layout)
        for module in model.modules()
        if not isinstance(module, AttentionLayer) and (layout := layout_of(module)) is not None
    ]
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if not found and not has_rope(model):
        raise RosaError(
            f"the model ({model_type}) has no rotary position embeddings (RoPE), so it has no "
            "low-frequency dimensions to inspect; use a model with RoPE"
        )
    if not found or any(recorder.layout.cos_sin is None for recorder in found):
        why = "its angles are out of reach of hooks" if found else f"the model {reason}"
        raise RosaError(
            f"rosa does not know how {model_type} rotates its queries and keys and cannot detect "
            f"it ({why}); use another model"
        )
    return found


def forward_arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a module's forward by name, positional ones included."""
    return {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}


def run_recorded(
    model: Any, sequences: Sequence[Sequence[int]], recorders: Sequence[Any], batch_size: int
) -> int:
    """The model's forward over all token ids with the recorders' hooks; the number of tokens.

    Each recorder's `real_tokens`, the attention mask (b, l), is set before each batch.
    """
    pad = model.config.get_text_config().pad_token_id or 0
    with ExitStack() as stack, torch.inference_mode():
        for recorder in recorders:
            for handle in recorder.hooks():
                stack.callback(handle.remove)
        for batch in longest_first_batches([len(ids) for ids in sequences], batch_size):
            ids, real = _padded([sequences[i] for i in batch], pad)
            for recorder in recorders:
                recorder.real_tokens = real
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


def _padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), padded on the right to two positions at least, which give the turn."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad)
    real = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    missing = (0, max(0, 2 - ids.shape[1]))
    return nn.functional.pad(ids, missing, value=pad), nn.functional.pad(real, missing)
