"""The choice of layers as pure functions: scores in, layers out. No PyTorch, no state.

A choice depends on (scores, k, p_exploit, seed, step) alone: its generator is seeded from the run's
seed and the step. So a checkpoint needs no generator state, a step that was scored but skipped
changes no later choice, and all ranks make the same choice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

HISTORY_FILE = "dls_history.jsonl"  # one line per choice, in the run's folder
EXPLOIT = "exploit"
EXPLORE = "explore"
STATIC = "static"  # `DlsConfig.layers`: nothing is scored or sampled


class Choice(NamedTuple):
    """How the layers were chosen ("exploit" or "explore"), and their indices, ascending."""

    mode: str
    selected: list[int]


def num_selected(k_ratio: float, layers: int) -> int:
    """k = max(1, round(k_ratio * L)); halves go to the even number, as Python's `round` does."""
    return max(1, round(k_ratio * layers))


def top_k(scores: Sequence[float], candidates: Sequence[int], k: int) -> list[int]:
    """The `k` candidates with the highest scores, ascending; ties go to the lower index."""
    ranked = sorted(candidates, key=lambda layer: (-scores[layer], layer))
    return sorted(ranked[:k])


def sample_k(candidates: Sequence[int], k: int, generator: random.Random) -> list[int]:
    """`k` candidates sampled uniformly without replacement, ascending.

    A partial Fisher-Yates shuffle on `Random.random()`, the one method whose sequence Python
    promises to keep.
    """
    pool = list(candidates)
    for i in range(k):
        j = i + int(generator.random() * (len(pool) - i))
        pool[i], pool[j] = pool[j], pool[i]
    return sorted(pool[:k])


def choose(
    scores: Sequence[float],
    candidates: Sequence[int],
    k: int,
    p_exploit: float,
    seed: int,
    step: int,
) -> Choice:
    """The choice of optimizer step `step`, Algorithm 1, line 9: `k` of the candidate layers.

    With probability `p_exploit` those with the highest `scores` (one per layer of the model), else
    a random sample. The generator's first number decides which, the next `k` are the sample.
    """
    generator = random.Random(f"rosa-dls/{seed}/{step}")
    if generator.random() < p_exploit:
        return Choice(EXPLOIT, top_k(scores, candidates, k))
    return Choice(EXPLORE, sample_k(candidates, k, generator))
