"""Algorithm 1 of the paper, written plainly and without the library."""

from __future__ import annotations

import random

import torch
from torch import nn

from rosa import DlsConfig
from tests.dls_models import (
    LAYERS,
    NORMS,
    batch,
    decoder_layers,
    norm_gradients,
)


def algorithm_1(model: nn.Module, config: DlsConfig, steps: int) -> list[dict]:
    """The paper's loop with one AdamW per layer: a layer that is masked is not stepped at all."""
    layers = decoder_layers(model)
    trained = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
    inside = {p for layer in trained for p in layer}
    outside = [p for p in model.parameters() if p.requires_grad and p not in inside]
    for layer in layers:  # norms need gradients to be scored, trained or not
        for name in NORMS:
            getattr(layer, name).weight.requires_grad_(True)
    optimizers = [torch.optim.AdamW(p, lr=0.01, weight_decay=0.1) for p in trained]
    others = torch.optim.AdamW(outside, lr=0.01, weight_decay=0.1) if outside else None
    selected, history = list(range(LAYERS)), []
    k = max(1, round(config.k_ratio * LAYERS))
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
                selected = sorted(sorted(range(LAYERS), key=lambda i: -scores[i])[:k])
            else:
                mode, pool = "explore", list(range(LAYERS))
                for i in range(k):
                    j = i + int(generator.random() * (LAYERS - i))
                    pool[i], pool[j] = pool[j], pool[i]
                selected = sorted(pool[:k])
            history.append({"step": t, "mode": mode, "scores": scores, "selected": selected})
        for i in selected:
            optimizers[i].step()
        if others is not None:
            others.step()
    return history
