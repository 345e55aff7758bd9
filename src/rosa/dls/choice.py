"""The choice of layers as pure functions: scores in, layers out. No PyTorch, no state.

A choice depends on (scores, k, settings, seed, step) alone: its generator is seeded from the run's
seed and the step. So a checkpoint needs no generator state, a step that was scored but skipped
changes no later choice, and all ranks make the same choice.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

HISTORY_FILE = "dls_history.jsonl"  # one line per choice, in the run's folder
EXPLOIT = "exploit"
EXPLORE = "explore"
STATIC = "static"  # `DlsConfig.layers`: nothing is scored or sampled
Policy = Literal["scores", "random", "cyclic", "weighted", "upper", "lower"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
SCORED_POLICIES = ("scores", "weighted")  # the others need no gradients of all layers
SAMPLED = (EXPLORE, "random", "weighted")  # modes


class Choice(NamedTuple):
    """How the layers were chosen, and their indices, ascending.

    The mode is "exploit" or "explore" under the policy `scores`, else the policy's name.
    """

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


def sample_weighted(
    scores: Sequence[float], candidates: Sequence[int], k: int, generator: random.Random
) -> list[int]:
    """`k` candidates sampled without replacement in proportion to their scores, ascending.

    One after the other: of those left, layer i is drawn with probability score_i / Σ_j score_j.
    Layers with a score of zero come last, uniformly.
    """
    pool, sampled = list(candidates), []
    for _ in range(k):
        largest = max(scores[i] for i in pool)
        sums = list(accumulate(scores[i] / largest if largest else 1.0 for i in pool))
        sampled.append(pool.pop(bisect_right(sums, generator.random() * sums[-1])))
    return sorted(sampled)


def next_k(candidates: Sequence[int], k: int, turn: int) -> list[int]:
    """The `k` candidates whose turn it is, ascending; turns count from 0, the last k wrap around.

    So every layer is chosen once before any is chosen again, also where k does not divide L.
    """
    return sorted(candidates[(turn * k + i) % len(candidates)] for i in range(k))


def choose(
    scores: Sequence[float],
    candidates: Sequence[int],
    k: int,
    p_exploit: float,
    seed: int,
    step: int,
    policy: Policy = "scores",
    turn: int = 0,
) -> Choice:
    """The choice of optimizer step `step`: `k` of the candidate layers.

    Policy `scores` is Algorithm 1, line 9: with probability `p_exploit` those with the highest
    `scores` (one per layer of the model), else a random sample. The generator's first number
    decides which, the next `k` are the sample. `random` is that sample at every choice. `turn`, the
    number of choices before this one, is for `cyclic`.
    """
    generator = random.Random(f"rosa-dls/{seed}/{step}")
    exploits = generator.random() < p_exploit
    if policy == "scores" and exploits:
        return Choice(EXPLOIT, top_k(scores, candidates, k))
    if policy == "weighted":
        return Choice(policy, sample_weighted(scores, candidates, k, generator))
    if policy == "cyclic":
        return Choice(policy, next_k(candidates, k, turn))
    if policy in ("upper", "lower"):
        return Choice(policy, list(candidates[-k:] if policy == "upper" else candidates[:k]))
    sampled = sample_k(candidates, k, generator)
    return Choice(EXPLORE if policy == "scores" else policy, sampled)
