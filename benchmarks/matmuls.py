"""Whether one concatenated matrix product beats four.

RoSA's first factor, rosa_A, reads what q_proj, k_proj and v_proj read. So the four can be one
product with the concatenated weight, whose output is sliced and whose gradients are concatenated.
This measures the products alone, before anything is built on them: no autograd, no modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.bench import DTYPES, Bench, Row
from benchmarks.measure import figures
from benchmarks.pages import spread_of, table

WIDTHS = (512, 1024, 2048)
RANK, HEAD, GROUP = 128, 64, 4
TRAINING, DECODING = 4 * 256, (1, 32)  # tokens
FEWEST = 5e8  # operations per measurement, so that the clock is precise
LAYERS = 8  # that follow one another, as in a model, or a small one's weights stay in the cache


class Products:
    """q_proj, k_proj, v_proj and rosa_A of some layers of a width, frozen but the last.

    Args:
        width: of the model, whose queries are as wide and keys and values a fourth of that.
        tokens: how many there are, all at once.
    """

    def __init__(self, width: int, tokens: int, dtype: torch.dtype, device: str) -> None:
        self.sizes = [width, width // GROUP, width // GROUP, RANK]
        made: dict[str, Any] = {"dtype": dtype, "device": device}
        self.x = torch.randn(tokens, width, **made)
        self.whole = [torch.randn(sum(self.sizes), width, **made) for _ in range(LAYERS)]
        self.parts = [[p.clone() for p in whole.split(self.sizes)] for whole in self.whole]
        self.gradients = [torch.randn(tokens, size, **made) for size in self.sizes]
        self.repeats = max(1, int(FEWEST / (2 * self.whole[0].numel() * tokens)))

    def forward_four(self, layer: int = 0) -> Sequence[Tensor]:
        return [linear(self.x, part) for part in self.parts[layer]]

    def forward_one(self, layer: int = 0) -> Sequence[Tensor]:
        return linear(self.x, self.whole[layer]).split(self.sizes, dim=-1)

    def training_four(self, layer: int = 0) -> tuple[Tensor, Tensor]:
        """The gradients to the input and of rosa_A, after the forward pass."""
        self.forward_four(layer)
        pairs = zip(self.gradients, self.parts[layer], strict=True)
        first, *others = (gradient @ part for gradient, part in pairs)
        for other in others:
            first += other
        return first, self.gradients[-1].T @ self.x

    def training_one(self, layer: int = 0) -> tuple[Tensor, Tensor]:
        """The same."""
        self.forward_one(layer)
        gradient = torch.cat(self.gradients, dim=-1)
        return gradient @ self.whole[layer], gradient[:, -RANK:].T @ self.x

    def compared(self, training: bool) -> dict[str, Callable[[], None]]:
        """Four and one, each `repeats` times, from layer to layer."""
        if training:
            return {"four": self._often(self.training_four), "one": self._often(self.training_one)}
        return {"four": self._often(self.forward_four), "one": self._often(self.forward_one)}

    def _often(self, run: Callable[[int], Any]) -> Callable[[], None]:
        @torch.inference_mode()
        def runs() -> None:
            for i in range(self.repeats):
                run(i % LAYERS)

        return runs


def matmuls(bench: Bench) -> Iterator[Row]:
    """A training step's products and those of decoding, four by four and all at once."""
    dtype = "bfloat16" if bench.device == "cuda" else "float32"
    for width in WIDTHS:
        for tokens in (TRAINING, *DECODING):
            products = Products(width, tokens, DTYPES[dtype], bench.device)
            timings = bench.timed(products.compared(training=tokens == TRAINING), 2)
            yield {
                "width": width,
                "tokens": tokens,
                "dtype": dtype,
                "what": "training" if tokens == TRAINING else "decoding",
                "four_seconds": timings["four"].median / products.repeats,
                **figures(timings["one"]),
            }


def matmuls_table(rows: Sequence[Row]) -> str:
    """One product as a multiple of four."""
    cells = [
        [
            f"{row['width']:,} wide, {row['what']}, tokens: {row['tokens']:,}, {row['dtype']}",
            f"{1e3 * row['four_seconds']:.3g} ms",
            spread_of(row),
        ]
        for row in rows
    ]
    return table(["", "four products", "one / four"], cells)
