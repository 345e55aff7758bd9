"""What an adapted model becomes in an export: its settings, and its weights by their new names."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict
from typing import Any

from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from rosa.errors import RosaError
from rosa.ops import RelativeNorm
from rosa.roae import RosaLayer
from rosa.roae.norms import NormWrapper
from rosa.roae.pairs import adapted_pairs
from rosa.roae.projection import BUILT_IN, PREFIX

_IN_FULL = re.compile(r"\.(?:modules_to_save\.(?P<adapter>[^.]+)|original_module)(?=\.)")
# Layers that mix tokens by other means than attention.
_NOT_ATTENTION = re.compile("mamba|recurrent|conv|deltanet|linearattention|lightning", re.I)


def check_architecture(model: Any) -> None:
    """Raises RosaError for a base model that cannot be exported, by its name.

    Exported are causal language models of Transformers whose layers are attention and feed-forward.
    """
    kind, reason = model.config.model_type, None
    mixers = {type(module).__name__ for module in model.modules()}
    other = [name for name in mixers if _NOT_ATTENTION.search(name)]
    if not type(model).__module__.startswith("transformers.models."):
        reason = "its code is not a part of Transformers"
    elif model.config.get_text_config() is not model.config or decoder_name(model) is None:
        reason = "it is more than a language model"
    elif other:
        reason = f"its layers are not attention and feed-forward alone ({max(other, key=len)})"
    if reason is not None:
        raise RosaError(
            f"{kind} models cannot be exported: {reason}; keep the adapter, which runs in "
            "Transformers with PEFT"
        )


def decoder_name(model: Any) -> str | None:
    """The name of the decoder in a causal language model."""
    names = dict(model.named_children())
    return next((name for name in (model.base_model_prefix, "model") if name in names), None)


def cast_to_base(model: nn.Module, adapter_name: str) -> None:
    """Gives what an adapter trained the dtype of the base, and its norms their usual form.

    An exported model has one dtype, and norms with a weight of their own.
    """
    for module in model.modules():
        if isinstance(module, NormWrapper):
            _to_plain_norm(module, adapter_name)
        if isinstance(module, (RosaLayer, NormWrapper)):
            module.cast(adapter_name, upcast=False)
        elif isinstance(module, ModulesToSaveWrapper):
            weights = zip(
                module.modules_to_save[adapter_name].parameters(),
                module.original_module.parameters(),
                strict=True,
            )
            for trained, original in weights:
                trained.data = trained.data.to(original.dtype)


def _to_plain_norm(wrapper: NormWrapper, adapter_name: str) -> None:
    relative = wrapper.modules_to_save[adapter_name]
    if isinstance(relative, RelativeNorm):
        norm = copy.deepcopy(wrapper.original_module)
        for name, value in relative.parameters_of_norm().items():
            norm.get_parameter(name).data = value.detach()
        wrapper.modules_to_save[adapter_name] = norm


def roae_settings(model: nn.Module, adapter_name: str, config: Any) -> dict[str, Any]:
    """`config.rosa` of the exported model: one group for all attention modules that are alike.

    Args:
        model: with the adapter, not PEFT's wrapper around it.
        config: the `RosaConfig`.
    """
    if config.projection not in BUILT_IN:
        raise RosaError(
            f"an adapter with the registered projection '{config.projection}' cannot be exported, "
            f"only {', '.join(BUILT_IN)}: the exported file would lack its code"
        )
    groups: list[dict[str, Any]] = []
    decoder = model.get_submodule(decoder_name(model) or "")
    for name, layer in _layers(decoder).items():
        attention: Any = layer.base_layer
        pairs = adapted_pairs(layer.layout, config, attention.layer_idx)
        is_range = isinstance(pairs, range)
        group = {
            "layout": asdict(layer.layout),
            "pairs": {"range": [pairs[0], pairs[-1] + 1]} if is_range else {"list": list(pairs)},
            "projection": _shapes(layer, layer.projection[adapter_name], adapter_name),
            "gqa": _shapes(layer, layer.gqa[adapter_name], adapter_name),
        }
        same = next((g for g in groups if {**g, "modules": []} == {**group, "modules": []}), None)
        if same is None:
            groups.append(same := {"modules": [], **group})
        same["modules"].append(name)
    return {
        "alpha": config.alpha,
        "bound": config.bound,
        "rope_stage": config.rope_stage,
        "groups": groups,
    }


def _shapes(layer: RosaLayer, names: tuple[str, ...], adapter_name: str) -> dict[str, list[int]]:
    return {
        name.removeprefix(PREFIX): list(getattr(layer, name)[adapter_name].weight.shape)
        for name in names
    }


def _layers(model: nn.Module) -> dict[str, RosaLayer]:
    return {name: each for name, each in model.named_modules() if isinstance(each, RosaLayer)}


def exported_state(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """The weights of a model with an adapter, by their names in the exported model.

    What the adapter trained in full (norms, `modules_to_save`) takes the place of the base's own.
    """
    layers = _layers(model)
    state = {}
    for key, tensor in model.state_dict().items():
        in_full = _IN_FULL.search(key)
        if in_full is not None:
            if in_full["adapter"] != adapter_name:
                continue
            key = _IN_FULL.sub("", key)
        name = next((name for name in layers if key.startswith(f"{name}.")), None)
        if name is not None:
            key = _of_attention(key.removeprefix(f"{name}."), name, layers[name])
        state[key] = tensor
    return state


def _of_attention(key: str, name: str, layer: RosaLayer) -> str:
    """The new name of a weight of an attention module, `base_layer.q_proj.weight` for example."""
    if not key.startswith("base_layer."):
        factor, _, _ = key.removeprefix(PREFIX).partition(".")
        return f"{name}.rosa.{factor}"
    key = key.removeprefix("base_layer.")
    for point in (layer.layout.query, layer.layout.key):
        if key.startswith(f"{point.module}."):
            key = f"{point.module}.base_layer.{key.removeprefix(f'{point.module}.')}"
            break
    return f"{name}.{key}"
