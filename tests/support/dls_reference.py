"""Algorithm 1 of the paper, written plainly and without the library."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import nn

from rosa import DlsConfig
from tests.support.dls_models import (
    batch,
    decoder_layers,
    held_outside,
    norm_gradients,
    norm_weights,
)


def algorithm_1(
    model: nn.Module,
    config: DlsConfig,
    steps: int,
    after_step: Callable[[int, list[int]], None] = lambda t, selected: None,
) -> list[dict]:
    """The paper's loop with one AdamW per layer: a layer that is masked is not stepped at all.

    `after_step(t, selected)` is what a method does of itself after a step, gradients still there.
    """
    layers = decoder_layers(model)
    shared = held_outside(model)
    trained = [
        [p for p in layer.parameters() if p.requires_grad and p not in shared] for layer in layers
    ]
    inside = {p for layer in trained for p in layer}
    outside = [p for p in model.parameters() if p.requires_grad and p not in inside]
    for layer in layers:  # norms need gradients to be scored, trained or not
        for weight in norm_weights(layer):
            weight.requires_grad_(True)
    settings = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = [torch.optim.AdamW(p, **settings) if p else None for p in trained]
    others = torch.optim.AdamW(outside, **settings) if outside else None
    competing = [i for i, p in enumerate(trained) if p]
    selected, history = competing, []
    k = max(1, round(config.k_ratio * len(competing)))
    for t in range(1, steps + 1):
        model.zero_grad()
        model(**batch(t)).loss.backward()
        if t > config.warmup and t % config.interval == 0:
            scores = [
                (sum(float((g.double() ** 2).sum()) for g in pair)) ** 0.5
                for pair in norm_gradients(model)
            ]
            generator = random.Random(f"rosa-dls/{config.seed}/{t}")
            if generator.random() < config.p_exploit:
                mode = "exploit"
                selected = sorted(sorted(competing, key=lambda i: -scores[i])[:k])
            else:
                mode, pool = "explore", list(competing)
                for i in range(k):
                    j = i + int(generator.random() * (len(pool) - i))
                    pool[i], pool[j] = pool[j], pool[i]
                selected = sorted(pool[:k])
            history.append({"step": t, "mode": mode, "scores": scores, "selected": selected})
        for i in selected:
            optimizers[i].step()
        if others is not None:
            others.step()
        after_step(t, selected)
    return history
