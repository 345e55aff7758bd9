"""RoSA in a model that holds adapters of other methods too, such as LoRA on the feed-forward.

Both are attached to one base model, RoSA last, under names of their own; PEFT then keeps both in
one table of configurations, and trains, saves and disables them together (guides/quickstart.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from rosa.errors import RosaError
from rosa.roae.registration import ROSA


def check_base(model: nn.Module, adapter_name: str) -> None:
    """Raises RosaError where PEFT would lose an adapter of another method without a word."""
    if isinstance(model, PeftModel):
        raise RosaError(
            "get_peft_model was given a model that get_peft_model made: one inside the other, "
            "their files would not load again; give it the base model, model.get_base_model(), "
            "which has the other adapter in it already"
        )
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if config is not None and config.peft_type != ROSA:
        raise RosaError(
            f"the model has an adapter '{adapter_name}' already, of {config.peft_type.value}: give "
            "one of the two another name, get_peft_model(model, config, adapter_name=...)"
        )


def check_trained_once(model: nn.Module, names: Iterable[str], own: Collection[str]) -> None:
    """Raises RosaError for a module to be trained in full that another method trains.

    Args:
        names: of the modules.
        own: names of RoSA's adapters.
    """
    for name in names:
        module = model.get_submodule(name)
        others: set[str] = set()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            others = {key for kind in module.adapter_layer_names for key in _keys(module, kind)}
        others -= set(own)
        if others:
            raise RosaError(
                f"{name} is trained by the adapter '{min(others)}' of another method already; "
                "leave it to one of the two (norms are RoSA's unless train_norms=False or "
                "exclude_modules names them)"
            )


def _keys(module: nn.Module, kind: str) -> Iterable[str]:
    """Names of the adapters that have weights of this kind in the module."""
    weights: Any = module
    for part in kind.split("."):
        weights = getattr(weights, part)
    return weights.keys()


@contextmanager
def others_untouched(model: nn.Module, own: Collection[str]) -> Iterator[None]:
    """Keeps what other methods train in full as it is while one of RoSA's adapters is activated.

    PEFT deactivates there every adapter but the one that it activates.
    """
    kept = [
        (module, list(names), [(p, p.requires_grad) for p in module.parameters()])
        for module in model.modules()
        if isinstance(module, AuxiliaryTrainingWrapper)
        and (names := [name for name in module.active_adapters if name not in own])
    ]
    yield
    for module, names, parameters in kept:
        module.set_adapter(names)
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)
