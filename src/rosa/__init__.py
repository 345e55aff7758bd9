"""RoSA: RoPE-aware selective adaptation of large language models.

`import rosa` is light: it loads neither PyTorch nor PEFT until a name below is used. Yet PEFT knows
the adapter types "ROSA" and "DYPAM" from then on, whichever is imported first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rosa._register import register_with_peft

if TYPE_CHECKING:
    from rosa.common.parameter_groups import parameter_groups
    from rosa.dls import DlsCallback, DlsConfig, DynamicLayerSelection
    from rosa.dypam import DypamConfig, DypamModel
    from rosa.models.loading import tiny_model_path
    from rosa.roae import RosaConfig, RosaModel, register_projection

__version__ = "0.1.0"

_HOME = {
    "RosaConfig": "rosa.roae",
    "RosaModel": "rosa.roae",
    "DypamConfig": "rosa.dypam",
    "DypamModel": "rosa.dypam",
    "DlsConfig": "rosa.dls",
    "DlsCallback": "rosa.dls",
    "DynamicLayerSelection": "rosa.dls",
    "parameter_groups": "rosa.common.parameter_groups",
    "register_projection": "rosa.roae",
    "tiny_model_path": "rosa.models.loading",
}
__all__ = [
    "DlsCallback",
    "DlsConfig",
    "DynamicLayerSelection",
    "DypamConfig",
    "DypamModel",
    "RosaConfig",
    "RosaModel",
    "__version__",
    "parameter_groups",
    "register_projection",
    "tiny_model_path",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rosa' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


register_with_peft()
