"""What an adapter does: the distribution of the signal α·S, by head, and how the norms change.

α·S is the relative change of a modulated dimension: 0.1 makes it 10 % stronger.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rosa.attention.layer import AttentionLayer
from rosa.inspect.capture import forward_arguments
from rosa.inspect.strength import Array, dimensions_of, sum_of_squares
from rosa.rope import layout_of

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class SignalStatistics:
    """α·S of one layer's queries or keys over all tokens, heads and modulated dimensions."""

    percentiles: dict[int, float]
    largest: float  # of |α·S|
    per_head: Array  # (heads,), root mean square

    @property
    def rms(self) -> float:
        return float(np.sqrt((self.per_head**2).mean()))


@dataclass(frozen=True)
class LayerEffect:
    """What RoAE does in one layer."""

    index: int
    dimensions: list[int]  # modulated, of each head
    query: SignalStatistics
    key: SignalStatistics


class LogHistogram:
    """Counts values of any size and sign; percentiles to 1 % of their size, in constant memory.

    Bins are even on the scale of asinh(x/FINEST): linear below FINEST, logarithmic above.
    """

    FINEST, WIDTH, BINS = 1e-6, 0.01, 4000  # reaches |x| = FINEST·sinh(40), about 1e11

    def __init__(self) -> None:
        self.counts = np.zeros(2 * self.BINS + 1, dtype=np.int64)

    def add(self, values: Tensor) -> None:
        """Counts every element; nan and infinity count as the largest there are."""
        scaled = torch.asinh(values.flatten().float() / self.FINEST) / self.WIDTH
        bins = scaled.nan_to_num(nan=self.BINS).round().clamp(-self.BINS, self.BINS).long()
        size = len(self.counts)
        self.counts += torch.bincount(bins + self.BINS, minlength=size).cpu().numpy()

    def percentile(self, percent: float) -> float:
        """The value that `percent` of all counted values do not exceed."""
        below = np.cumsum(self.counts)
        found = int(np.searchsorted(below, max(1.0, percent / 100 * below[-1])))
        return float(self.FINEST * np.sinh((found - self.BINS) * self.WIDTH))


class SignalRecorder:
    """Recomputes the signal of an adapted attention module, and keeps its statistics."""

    real_tokens: Tensor

    def __init__(self, layer: AttentionLayer, adapter: str) -> None:
        self.layer = layer
        self.adapter = adapter
        self.sums = [np.zeros(tap.heads) for tap in (layer.layout.query, layer.layout.key)]
        self.largest = [0.0, 0.0]
        self.histograms = [LogHistogram(), LogHistogram()]

    def hooks(self) -> Iterator[RemovableHandle]:
        yield self.layer.register_forward_pre_hook(self._add, with_kwargs=True)

    def effect(self, tokens: int) -> LayerEffect:
        """The statistics, over the number of real tokens seen."""
        low, _ = self.layer.low_pairs[self.adapter]
        dimensions = dimensions_of(low.pairs, self.layer.layout)
        parts = zip(self.sums, self.largest, self.histograms, strict=True)
        query, key = (
            SignalStatistics(
                {p: histogram.percentile(p) for p in PERCENTILES},
                largest,
                np.sqrt(total / tokens / len(dimensions)),
            )
            for total, largest, histogram in parts
        )
        return LayerEffect(int(self.layer.layer_idx), dimensions, query, key)

    def _add(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        hidden = forward_arguments(self.layer.base_layer, args, kwargs)["hidden_states"]
        alpha = self.layer.alpha[self.adapter]
        real = self.real_tokens.bool().to(hidden.device)
        for i, signal in enumerate(self.layer.signals(self.adapter, hidden)):
            scaled = alpha * signal.float()
            self.sums[i] += sum_of_squares(scaled, self.real_tokens).sum(-1)
            self.largest[i] = max(self.largest[i], float(scaled[real].abs().max()))
            self.histograms[i].add(scaled[real])


def signal_recorders(model: nn.Module) -> list[SignalRecorder]:
    """A recorder for each layer in which a RoSA or DyPAM adapter is active."""
    return [
        SignalRecorder(layer, name)
        for layer in model.modules()
        if isinstance(layer, AttentionLayer) and not layer.disable_adapters
        for name in layer.active_adapters
        if name in layer.low_pairs
    ]


@torch.inference_mode()
def norm_scales(model: nn.Module) -> list[dict[str, Array]]:
    """The scale (d,) that each norm of each decoder layer applies, by the norm's name.

    Measured on an input of +1 and -1 in turn, which a norm only scales: so it is the same for a
    weight w, for Gemma's 1 + w, and for a copy that an adapter trains.
    """
    modules = dict(model.named_modules())
    decoder_layers = [
        modules[name.rpartition(".")[0]]
        for name, module in modules.items()
        if not name.endswith(".base_layer") and layout_of(module) is not None
    ]
    return [
        {
            name: _scale(child)
            for name, child in layer.named_children()
            if "norm" in name or name.startswith("ln")
        }
        for layer in decoder_layers
    ]


def relative_change(before: Array, after: Array) -> float:
    """‖after - before‖ / ‖before‖."""
    return float(np.linalg.norm(after - before) / np.linalg.norm(before))


def _scale(norm: nn.Module) -> Array:
    weight = next(norm.parameters(), None)
    if weight is None:
        return np.ones(1)
    # A float32 copy: in bfloat16 the steps of training would be rounded away.
    exact = copy.deepcopy(norm).float()
    signs = torch.ones(1, 1, weight.numel(), device=weight.device)
    signs[..., 1::2] = -1
    return (exact(signs) * signs).flatten().cpu().double().numpy()
