"""An error where Transformers' own `load_adapter` would lose trained norms, before 5.18."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import transformers
from packaging.version import Version

from rosa.errors import RosaError

LOADS_NORMS = "5.18"
_in_load_adapter = ContextVar("rosa_in_load_adapter", default=False)


def watch_load_adapter() -> None:
    """Lets `check_load_adapter` know when `load_adapter` of an older Transformers runs."""
    if Version(transformers.__version__) >= Version(LOADS_NORMS):
        return
    from transformers.integrations.peft import PeftAdapterMixin

    load_adapter = PeftAdapterMixin.load_adapter

    @functools.wraps(load_adapter)
    def watched(*args: Any, **kwargs: Any) -> Any:
        token = _in_load_adapter.set(True)
        try:
            return load_adapter(*args, **kwargs)
        finally:
            _in_load_adapter.reset(token)

    PeftAdapterMixin.load_adapter = watched  # type: ignore[method-assign]


def check_load_adapter(trained_in_full: list[str]) -> None:
    """Raises RosaError in `load_adapter` of a Transformers that loses these modules' weights."""
    if trained_in_full and _in_load_adapter.get():
        raise RosaError(
            f"load_adapter of Transformers {transformers.__version__} loses trained norms and "
            f"modules_to_save ({LOADS_NORMS} loads them): load with "
            "peft.PeftModel.from_pretrained(model, folder)"
        )
