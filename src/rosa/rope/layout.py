"""How one attention module applies RoPE, and its lowest-frequency dimensions. Without PyTorch.

RoPE rotates pairs of dimensions by an angle that falls with the index of the pair, so the low
frequencies are the last pairs:

    halves (Llama, NeoX)         |  real 0 .. ρ/2-1   |  imaginary ρ/2 .. ρ-1  | not rotated |
                                             └─ last n              └─ last n
    interleaved (GPT-J, Cohere)  |  r i r i r i ...            r i r i         | not rotated |
                                                                └─ last 2n
    halves of a wider span       |  real 0 .. ρ/2-1  | not |  imaginary s/2 ..  | not |
    (Gemma4's global layers, s)           └─ last n             └─ last n
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rosa.errors import RosaError

Pairing = Literal["halves", "interleaved"]
# The (real, imaginary) dimensions of n pairs of a head; element j of both forms one pair.
PairDimensions = tuple[slice, slice] | tuple[list[int], list[int]]
# Axes of a hooked output: (b, l, heads·head_dim), (b, l, heads, head_dim), (b, heads, l, head_dim).
Axes = Literal["flat", "length_first", "heads_first"]


@dataclass(frozen=True)
class HookPoint:
    """The last module before rotation: its output holds the queries, the keys, or both.

    A fused projection's output, always flat, is split into `groups` of equal width; each holds
    heads / groups of the heads, one after another from feature `offset` on:

        Phi-3      1 group   | q q q q k k v v |
        GPT-NeoX   4 groups  | q k v | q k v | q k v | q k v |
    """

    module: str  # name inside the attention module: "q_proj", "k_norm", "qkv_proj", ...
    axes: Axes
    heads: int
    groups: int = 1
    offset: int = 0


@dataclass(frozen=True)
class CosSinSource:
    """Where an attention module gets cos and sin, and which element rotates which pair."""

    # An argument, (cos, sin) or cos + i·sin; a submodule that computes them from the position; or
    # a buffer indexed by the position, sin first.
    origin: Literal["position_embeddings", "rotary_emb", "embed_positions"] = "position_embeddings"
    stride: int = 1  # pair i is rotated by element stride·i
    sign: int = 1  # -1: by minus the angle
    by_pair: bool = False  # one element for each pair; else one for each dimension


@dataclass(frozen=True)
class RopeLayout:
    """The rotation of one attention module with an input of width `hidden_size`."""

    hidden_size: int
    head_dim: int
    rotary_dim: int  # ρ, at most head_dim; the rest of a head is not rotated
    pairing: Pairing
    query: HookPoint
    key: HookPoint
    cos_sin: CosSinSource | None = field(default_factory=CosSinSource)  # None: out of reach
    # Width of what is split into halves, where only the first pairs of it rotate; None: ρ.
    span: int | None = None

    def dimensions(self, pairs: Sequence[int]) -> PairDimensions:
        """The (real, imaginary) dimensions of these of a head's pairs."""
        return pair_dimensions(self.rotary_dim, self.pairing, pairs, self.span)


def low_pair_count(head_dim: int, rotary_dim: int, r_low: float) -> int:
    """n = ⌊ρ·r_low/2⌋, the number of adapted pairs.

    Raises RosaError where n = 0, naming head_dim and r_low.
    """
    # 1e-9: products such as 20·0.7 = 13.999… stand for integers
    pairs = int(rotary_dim * r_low / 2 + 1e-9)
    if pairs < 1:
        rotated = "" if rotary_dim == head_dim else f" of which {rotary_dim} are rotated"
        raise RosaError(
            f"r_low={r_low} selects no dimension pair of a head with head_dim={head_dim}{rotated}; "
            f"use r_low >= {math.ceil(2e4 / rotary_dim) / 1e4}"
        )
    return pairs


def pair_dimensions(
    rotary_dim: int, pairing: Pairing, pairs: Sequence[int], span: int | None = None
) -> PairDimensions:
    """The (real, imaginary) dimensions of pairs, of 0 (the fastest) to ρ/2 - 1: for a `range` of
    pairs slices, else lists. `span` is that of `RopeLayout`."""
    step, apart = (1, (span or rotary_dim) // 2) if pairing == "halves" else (2, 1)
    if isinstance(pairs, range):
        first, stop = step * pairs.start, step * pairs.stop
        return slice(first, stop, step), slice(first + apart, stop + apart, step)
    return [step * pair for pair in pairs], [step * pair + apart for pair in pairs]
