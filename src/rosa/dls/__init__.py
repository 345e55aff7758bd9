"""DLS, dynamic layer selection: every `interval` steps, choose the layers that train next.

Importing this package loads neither PyTorch nor Transformers until a name below is used, so that
an adapter's configuration can embed a `DlsConfig`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rosa.dls.config import DlsConfig

if TYPE_CHECKING:
    from rosa.dls.callback import DlsCallback
    from rosa.dls.selection import DynamicLayerSelection

_MODULES = {"DlsCallback": "rosa.dls.callback", "DynamicLayerSelection": "rosa.dls.selection"}
__all__ = ["DlsCallback", "DlsConfig", "DynamicLayerSelection"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rosa.dls' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
