"""Finds what DLS chooses among: the model's list of decoder layers, and the norms that count.

decoder layer      x -> [norm] -> attention -> + -> [norm] -> feed-forward -> +
                         ^                           ^
                         these feed attention and feed-forward: their gradients are the score
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from rosa.errors import RosaError

# Containers in which PEFT keeps the trained copies of a norm, one per adapter.
_COPIES = ("modules_to_save", "ln_tuning_layers")
_ORIGINALS = ("original_module", "base_layer")


class DecoderLayers(NamedTuple):
    """Where the layers are: the path of their list in the model, its owner, and the layers."""

    path: str
    owner: nn.Module
    layers: list[nn.Module]

    def ancestors(self, model: nn.Module) -> list[nn.Module]:
        """The modules around the list, from `model` down to its owner."""
        parts = self.path.split(".")
        return [model.get_submodule(".".join(parts[:n])) for n in range(len(parts))]


def find_decoder_layers(model: nn.Module) -> DecoderLayers:
    """The one `ModuleList` of layers with norms in which something is trainable.

    Raises:
        RosaError: there is none, nothing in it is trainable, or several could be meant.
    """
    lists = _outermost_lists(model)
    kind = type(model).__name__
    if not lists:
        raise RosaError(
            f"DLS found no list of decoder layers in {kind}: it looks for an nn.ModuleList whose "
            "members have norms of their own"
        )
    trained = [found for found in lists if any(p.requires_grad for p in _parameters(found))]
    if not trained:
        raise RosaError(
            f"DLS found no trainable parameter in the layers of {kind} "
            f"({', '.join(found.path for found in lists)}): {_instead(model)}"
        )
    if len(trained) > 1:
        trained = _inside_decoder(model, trained)
    if len(trained) > 1:
        raise RosaError(
            f"DLS cannot tell which list of layers of {kind} to choose from, "
            f"{' or '.join(found.path for found in trained)}: leave only one of them trainable"
        )
    return trained[0]


def counted_norms(layer: nn.Module) -> dict[str, nn.Module]:
    """The norms of a decoder layer that feed attention and feed-forward, by name.

    Names that begin with `post_` follow their part of the layer, with one exception: in Llama's
    naming `post_attention_layernorm` is the norm before the feed-forward. Where a layer has norms
    after its parts only (OLMo2), those count.
    """
    norms = {name: child for name, child in layer.named_children() if _is_norm_name(name)}
    before = {name: norm for name, norm in norms.items() if not name.startswith("post_")}
    if not before:
        return norms
    has_own_feed_forward_norm = any(name.startswith("pre_") for name in before)
    if not has_own_feed_forward_norm and "post_attention_layernorm" in norms:
        before["post_attention_layernorm"] = norms["post_attention_layernorm"]
    return before


def counted_parameters(layer: nn.Module, name: str) -> list[nn.Parameter]:
    """The weights (and biases) of the norms that count in `layer`, of the active copies.

    Raises:
        RosaError: these norms have no weight, as in OLMo, so that there is nothing to score.
    """
    norms = counted_norms(layer)
    found = [p for norm in norms.values() for p in active_copy(norm).parameters()]
    if not found:
        raise RosaError(
            f"DLS cannot score {name}: its norms ({', '.join(norms)}) have no weight; train this "
            "model without DLS, or name the layers by dls.layers"
        )
    return found


def active_copy(norm: nn.Module) -> nn.Module:
    """The module that computes: PEFT's copy of the active adapter, or `norm` itself.

    A norm that an adapter trains is wrapped: the wrapper holds the untouched original and one
    copy per adapter.
    """
    children = dict(norm.named_children())
    copies = next((children[name] for name in _COPIES if name in children), None)
    original = next((children[name] for name in _ORIGINALS if name in children), None)
    if original is None:
        return norm
    of_adapter = dict(copies.named_children()) if copies is not None else {}
    active = [name for name in getattr(norm, "active_adapters", []) if name in of_adapter]
    return active_copy(of_adapter[active[0]] if active else original)


def _outermost_lists(model: nn.Module) -> list[DecoderLayers]:
    """Every `ModuleList` whose members all have counted norms, without lists inside another."""
    found: list[DecoderLayers] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{outer.path}.") for outer in found)
        if not isinstance(module, nn.ModuleList) or not len(module) or inside or not path:
            continue
        layers = list(module)
        if all(counted_norms(layer) for layer in layers):
            owner = model.get_submodule(path.rpartition(".")[0])
            found.append(DecoderLayers(path, owner, layers))
    return found


def _instead(model: nn.Module) -> str:
    """What to do about a model whose layers have nothing to train."""
    outside = [name for name, p in model.named_parameters() if p.requires_grad]
    if not outside:
        return "attach it after get_peft_model or after setting requires_grad"
    return (
        f"all that trains ({outside[0]}{', ...' if len(outside) > 1 else ''}) is outside the "
        "layers, so there is none to choose; train it without DLS"
    )


def _inside_decoder(model: nn.Module, lists: list[DecoderLayers]) -> list[DecoderLayers]:
    """Those of `lists` that belong to what the model itself calls its decoder, else all."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if not isinstance(decoder, nn.Module):
        return lists
    members = {id(module) for module in decoder.modules()}
    return [found for found in lists if id(found.layers[0]) in members] or lists


def _parameters(found: DecoderLayers) -> list[nn.Parameter]:
    return [p for layer in found.layers for p in layer.parameters()]


def _is_norm_name(name: str) -> bool:
    return "norm" in name or name.startswith("ln")
