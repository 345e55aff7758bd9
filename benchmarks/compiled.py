"""Decoding with a static cache and `torch.compile`, as docs/guides/serving.md has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import StaticCache

from benchmarks.bench import TOKENS, Bench, Row
from benchmarks.contenders import DECODING, Inference
from benchmarks.measure import figures
from benchmarks.pages import by_place, spread_of, table

COMPILED = ("floor", "lora", "rosa", "rosa_pre")
PROMPT, PLACES = 128, 256  # tokens in the cache, and how many it has room for


class Compiled:
    """An adapted model, compiled for one token after a static cache of a prompt."""

    def __init__(self, model: Inference) -> None:
        self._token = model.token
        self._model = torch.compile(model.model, dynamic=False, fullgraph=True)
        self._cache = StaticCache(config=model.model.config, max_cache_len=PLACES)
        with torch.no_grad():
            model.model(input_ids=model.prompt, past_key_values=self._cache, logits_to_keep=1)

    @torch.no_grad()  # as `generate` does
    def decode(self, tokens: int = TOKENS) -> None:
        """One token after another on the prompt's cache, which then holds the prompt again."""
        for _ in range(tokens):
            self._model(input_ids=self._token, past_key_values=self._cache, use_cache=True)
        for layer in self._cache.layers:
            layer.cumulative_length.sub_(tokens)


def why_not(device: str) -> str | None:
    """Why nothing can be compiled here: the first line of PyTorch's own words."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever a missing or broken compiler leads to
        return str(error).strip().splitlines()[0] or type(error).__name__
    return None


def compiled(bench: Bench) -> Iterator[Row]:
    """Each compiled, next to the compiled bare model; and the bare model uncompiled."""
    reason = why_not(bench.device)
    if reason is not None:
        yield {"left_out": reason}
        return
    for size, batch in ((bench.small, 1), (bench.small, 32)):
        yield from _at(bench, size, batch)


def _at(bench: Bench, size: str, batch: int) -> Iterator[Row]:
    torch._dynamo.reset()
    eager = {name: Inference(DECODING[name], bench.model(size), batch, PROMPT) for name in COMPILED}
    work: dict[str, Callable[[], Any]] = {
        name: Compiled(model).decode for name, model in eager.items()
    }
    titles = {name: f"{DECODING[name].title}, compiled" for name in COMPILED}
    titles["eager"] = f"{DECODING['floor'].title}, not compiled, cache that grows"
    timings = bench.timed({**work, "eager": eager["floor"].decode}, 2)
    for name, timing in timings.items():
        yield {
            "contender": name,
            "title": titles[name],
            "size": size,
            "batch": batch,
            "length": PROMPT,
            "dtype": "float32",
            **figures(timing),
        }


def compiled_table(rows: Sequence[Row]) -> str:
    """In multiples of the bare model, compiled; or why there is nothing to tell."""
    if "left_out" in rows[0]:
        return f"Left out, as nothing could be compiled here: {rows[0]['left_out']}"
    tables = []
    for where, here in by_place(rows):
        cells = [
            [row["title"], spread_of(row), f"{1e3 * row['seconds'] / TOKENS:.1f} ms"]
            for row in here
        ]
        gain = 1 / next(row["ratio"] for row in here if row["contender"] == "eager")
        tables.append(
            f"{where}; compiled, the bare model takes {gain:.2f} of its time:\n\n"
            + table(["", "decode", "per token"], cells)
        )
    return "\n\n".join(tables)
