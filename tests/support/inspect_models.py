"""Tiny models ready to be inspected, and a recording of what their attention really receives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from rosa.inspect import TokenizedTexts
from rosa.models.loading import Loaded
from tests.support.tiny_models import random_tokens

TEXTS = TokenizedTexts(
    [random_tokens(1, n, seed=n)[0].tolist() for n in (12, 7, 9, 3, 1)], "random tokens"
)


def loaded(model: Any, name: str = "tiny") -> Loaded:
    """As `models.load` returns it, without a tokenizer."""
    adapter = name if isinstance(model, PeftModel) else None
    return Loaded(model, None, name, "base", adapter)


@contextmanager
def recording(model: Any) -> Iterator[dict[int, tuple[list, list]]]:
    """Per layer the queries and keys (b, heads, l, head_dim) that its attention kernel gets."""
    seen: dict[int, tuple[list, list]] = {}

    def attend(module: Any, query: Any, key: Any, *rest: Any, **more: Any) -> Any:
        queries, keys = seen.setdefault(module.layer_idx, ([], []))
        queries.append(query.detach().double())
        keys.append(key.detach().double())
        eager = sys.modules[type(module).__module__].eager_attention_forward  # the model's own
        return eager(module, query, key, *rest, **more)

    AttentionInterface.register("recording", attend)
    AttentionMaskInterface.register("recording", eager_mask)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    before = base.config._attn_implementation
    base.set_attn_implementation("recording")
    try:
        yield seen
    finally:
        base.set_attn_implementation(before)


@torch.no_grad()
def strengths(
    model: Any, texts: TokenizedTexts = TEXTS
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Per layer the strength of queries and keys (heads, head_dim), one text at a time."""
    with recording(model) as seen:
        for ids in texts.sequences:
            model(input_ids=torch.tensor([ids]))
    return {
        layer: tuple(
            np.sqrt(sum((z[0] ** 2).sum(1).numpy() for z in states) / texts.tokens)
            for states in seen[layer]
        )
        for layer in sorted(seen)
    }
