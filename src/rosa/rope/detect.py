"""The RoPE layout of any attention module: from the table of known types, or detected.

A detected layout is cached per process by what the module is (class, layer index and config), so
that copies of it, also those without weights, have it too.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rosa.rope.families import known_layout
from rosa.rope.layout import RopeLayout

if TYPE_CHECKING:
    from torch import nn

_Key = tuple[type, int, str]
_DETECTED: dict[_Key, RopeLayout] = {}
_CLASSES: set[type] = set()
_IRRELEVANT = ("dtype", "torch_dtype", "use_cache", "transformers_version", "_name_or_path")


def layout_of(module: nn.Module) -> RopeLayout | None:
    """The RoPE layout of an attention module, or of a wrapper with a `layout`.

    None for any other module, and for one that is neither of a known architecture nor detected
    (`detect_unknown`). Raises RosaError as `known_layout` does.
    """
    layout = getattr(module, "layout", None)
    if isinstance(layout, RopeLayout):
        return layout
    if type(module) in _CLASSES:
        return _DETECTED.get(_key(module))
    return known_layout(module)


def detect_unknown(model: nn.Module) -> str | None:
    """Detects the layouts of a model of an unknown architecture, which `layout_of` gives then.

    Returns None where `layout_of` knows the model (now or before), else why not, as the end of a
    sentence that begins with the model.
    """
    if any(layout_of(module) is not None for module in model.modules()):
        return None
    from rosa.rope.probe import probe_layouts  # these load PyTorch
    from rosa.rope.trace import DetectionError

    try:
        layouts = probe_layouts(model)
    except DetectionError as error:
        return str(error)
    for name, layout in layouts.items():
        module = model.get_submodule(name)
        if not isinstance(getattr(module, "layer_idx", None), int):
            return f"does not number its attention modules ({name} has no layer_idx)"
        _DETECTED[_key(module)] = layout
        _CLASSES.add(type(module))
    return None if layouts else "does not rotate anything that can be seen"


def _key(module: Any) -> _Key:
    """Equal for modules that compute the same, whatever their weights and wherever these are."""
    if hasattr(module, "config"):
        values = {k: v for k, v in module.config.to_dict().items() if k not in _IRRELEVANT}
    else:
        state = ("training", "_is_hf_initialized")
        values = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, (int, float, str)) and name not in state
        }
    return type(module), module.layer_idx, json.dumps(values, sort_keys=True, default=str)
