"""Finds the model's list of decoder layers, and the norms whose gradients score each layer.

decoder layer      x -> [norm] -> attention -> + -> [norm] -> feed-forward -> +
                         ^                           ^
                         these feed attention and feed-forward: their gradients are the score
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.ops import RelativeNorm, scale_offset

# Containers in which PEFT keeps the trained copies of a norm, one per adapter.
_COPIES = ("modules_to_save", "ln_tuning_layers")
_ORIGINALS = ("original_module", "base_layer")


class DecoderLayers(NamedTuple):
    """The layers, with the path of their list in the model and the module that owns it."""

    path: str
    owner: nn.Module
    layers: list[nn.Module]

    def ancestors(self, model: nn.Module) -> list[nn.Module]:
        """The modules around the list, from `model` down to its owner."""
        parts = self.path.split(".")
        return [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]


def find_decoder_layers(model: nn.Module) -> DecoderLayers:
    """The one `ModuleList` of layers with norms that has trainable parameters; else an error."""
    lists = _outermost_lists(model)
    kind = type(model).__name__
    if not lists:
        raise RosaError(
            f"DLS found no list of decoder layers in {kind}: it looks for an nn.ModuleList whose "
            "modules have norms of their own"
        )
    trained = [
        found
        for found in lists
        if any(p.requires_grad for x in found.layers for p in x.parameters())
    ]
    if not trained:
        paths = ", ".join(found.path for found in lists)
        outside = [name for name, p in model.named_parameters() if p.requires_grad]
        reason = "attach it after get_peft_model or after setting requires_grad"
        if outside:
            reason = f"only parameters outside them train ({outside[0]}, ...); train without DLS"
        raise RosaError(
            f"DLS found no trainable parameter in the layers of {kind} ({paths}): {reason}"
        )
    if len(trained) > 1:
        trained = _inside_decoder(model, trained)
    if len(trained) > 1:
        raise RosaError(
            f"{kind} has several lists of layers, {' or '.join(found.path for found in trained)}: "
            "leave only one of them trainable for DLS"
        )
    return trained[0]


def scored_norms(layer: nn.Module) -> dict[str, nn.Module]:
    """The norms of a decoder layer that feed attention and feed-forward, by name.

    Names that begin with `post_` follow attention or feed-forward, with one exception: in Llama's
    naming `post_attention_layernorm` is the norm before the feed-forward. A layer that has no other
    norms (OLMo2) is scored by those.
    """
    named = layer.named_children()
    norms = {name: child for name, child in named if "norm" in name or name.startswith("ln")}
    before = {name: norm for name, norm in norms.items() if not name.startswith("post_")}
    if not before:
        return norms
    has_feed_forward_norm = any(name.startswith("pre_") for name in before)
    if not has_feed_forward_norm and "post_attention_layernorm" in norms:
        before["post_attention_layernorm"] = norms["post_attention_layernorm"]
    return before


def scored_parameters(layer: nn.Module, name: str) -> list[nn.Parameter]:
    """The weights and biases of the layer's scored norms; an error if there are none (OLMo)."""
    norms = scored_norms(layer)
    found = [p for norm in norms.values() for p in active_copy(norm).parameters()]
    if not found:
        raise RosaError(
            f"DLS cannot score {name}, whose norms ({', '.join(norms)}) have no weight: train "
            "without DLS, or set dls.layers"
        )
    return found


def score_factors(layer: nn.Module, score: str) -> dict[nn.Parameter, Callable[[], Tensor]]:
    """What the gradient of a scored parameter is multiplied by, now; none where by nothing.

    Eq. 5 takes the gradient by the scale w. What is trained of a `RelativeNorm` is δ, of which
    w = w₀ + (w₀ + offset) ⊙ δ: so ∇w is ∇δ / (w₀ + offset), and 0 where the scale is fixed at 0.
    The relative score multiplies by w + offset, which leaves (1 + δ) ⊙ ∇δ of it.
    """
    factors: dict[nn.Parameter, Callable[[], Tensor]] = {}
    for norm in map(active_copy, scored_norms(layer).values()):
        for name, parameter in norm.named_parameters():
            if isinstance(norm, RelativeNorm) and name == "weight":
                by_scale = partial(_reciprocal, norm)
                factors[parameter] = (
                    partial(torch.add, parameter, 1) if score == "relative" else by_scale
                )
            elif score == "relative":
                offset = scale_offset(norm) if name == "weight" else 0.0
                if offset is None:
                    raise RosaError(
                        "dls.score='relative' needs norms whose scale is their weight, or 1 + "
                        f"weight, which {type(norm).__name__} has not: use 'gradient'"
                    )
                factors[parameter] = partial(torch.add, parameter, offset)
    return factors


def _reciprocal(norm: RelativeNorm) -> Tensor:
    scale = norm.frozen_scale()
    return torch.where(scale == 0, 0, scale.reciprocal())


def active_copy(norm: nn.Module) -> nn.Module:
    """The module that computes: PEFT's copy for the active adapter, or `norm` itself."""
    children = dict(norm.named_children())
    copies = next((children[name] for name in _COPIES if name in children), None)
    original = next((children[name] for name in _ORIGINALS if name in children), None)
    if original is None:
        return norm
    by_adapter = dict(copies.named_children()) if copies is not None else {}
    active = [name for name in getattr(norm, "active_adapters", []) if name in by_adapter]
    return active_copy(by_adapter[active[0]] if active else original)


def _outermost_lists(model: nn.Module) -> list[DecoderLayers]:
    """Every `ModuleList` whose modules all have scored norms, without lists inside another."""
    found: list[DecoderLayers] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer.path}.") for outer in found)
        if not isinstance(module, nn.ModuleList) or not len(module) or inside or not path:
            continue
        layers = list(module)
        if all(scored_norms(layer) for layer in layers):
            owner = model.get_submodule(path.rpartition(".")[0])
            found.append(DecoderLayers(path, owner, layers))
    return found


def _inside_decoder(model: nn.Module, lists: list[DecoderLayers]) -> list[DecoderLayers]:
    """Those of `lists` inside `model.get_decoder()`; all of them if there is no such one."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module):
        return lists
    members = set(decoder.modules())
    return [found for found in lists if found.layers[0] in members] or lists
