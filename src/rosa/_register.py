"""Lets PEFT know the tuners after a mere `import rosa`, without importing PEFT earlier.

Where PEFT is loaded already, the tuners register at once. Else a finder waits in `sys.meta_path`
for the first `import peft`, lets it run as usual, and registers when it is done.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _AfterPeft:
    """Finds `peft` as the other finders do, and registers the tuners once it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        specs = (
            finder.find_spec(fullname, path, target)
            for finder in sys.meta_path
            if finder is not self
        )
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._register_after(spec)
        return spec

    def _register_after(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _register()

        loader.exec_module = execute_and_register  # type: ignore[method-assign]


def _register() -> None:
    for tuner in ("rosa.roae", "rosa.dypam"):
        importlib.import_module(tuner)


def register_with_peft() -> None:
    """Registers RoSA and DyPAM with PEFT, now or as soon as PEFT is imported. Once per process."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())
