"""The adapter that a recipe's `adapter_from` names, which a run goes on training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.errors import RosaError
from rosa.methods.registry import load_method, method_config
from rosa.models.identity import is_same_model, recipe_beside
from rosa.models.loading import (
    BUILT_IN,
    adapter_base,
    adapter_folder,
    find_adapter_config,
    read_adapter_json,
    resolve_name,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


def is_local_adapter(name: str) -> bool:
    """Whether `name` is the folder of an adapter."""
    return Path(name).is_dir() and find_adapter_config(name) is not None


def adapter_config_file(name: str) -> Path:
    """The `adapter_config.json` of `adapter_from`.

    Raises:
        RosaError: there is none; of a run that is not finished the last checkpoint is named.
    """
    if file := find_adapter_config(name):
        return file
    checkpoints = sorted(Path(name).glob("checkpoint-*/adapter_config.json"), key=os.path.getmtime)
    hint = f"; its run is not finished, use {checkpoints[-1].parent}" if checkpoints else ""
    raise RosaError(f"adapter_from: {name} holds no adapter (no adapter_config.json){hint}")


def base_of(name: str) -> str:
    """The base model that the adapter names, as a recipe's `model`."""
    base = adapter_base(name, adapter_config_file(name))
    return next((built_in for built_in in BUILT_IN if resolve_name(built_in) == base), base)


def method_of(name: str) -> str:
    """The method of an adapter: its run's, where a recipe lies beside it, else by its PEFT type."""
    method = recipe_beside(name).get("method")
    return str(method or read_adapter_json(adapter_config_file(name)).get("peft_type")).lower()


def check_adapter_from(name: str, model: str, method: str, arguments: dict[str, Any]) -> None:
    """Whether a run with this base model, method and keys under `adapter` can continue `name`.

    Raises:
        RosaError: one of them is another than the adapter's, or PEFT cannot train it further.
    """
    base = read_adapter_json(adapter_config_file(name)).get("base_model_name_or_path")
    if base and not is_same_model(str(base), model):
        raise RosaError(
            f"adapter_from: {name} was trained on {base}, and model is {model}; leave model "
            "out, or use an adapter of this model"
        )
    from rosa.attention.load import read_adapter_config

    config: Any = read_adapter_config(adapter_folder(name))
    kind = str(config.peft_type.value)
    chosen = load_method(method)
    if not isinstance(config, chosen.config_class):
        raise RosaError(
            f"adapter_from: {name} is a {kind.lower()} adapter, and method is {method}; "
            "leave method out"
        )
    if kind == "ADALORA" or config.is_prompt_learning:
        why = "its schedule of ranks has ended" if kind == "ADALORA" else "PEFT only applies it"
        raise RosaError(f"adapter_from: a finished {kind.lower()} adapter cannot be trained: {why}")
    switches = {key: value for key, value in chosen.kwargs.items() if isinstance(value, bool)}
    wanted = method_config(method, arguments)
    for key, value in (switches | arguments).items():
        before, now = getattr(config, key), getattr(wanted, key)
        # PEFT writes the names of the modules in place of None and of 'all-linear'.
        if value not in (None, "all-linear") and before != now:
            raise RosaError(
                f"adapter_from: {name} was trained with {key} {before}, and the recipe's "
                f"adapter.{key} is {now}; leave it out"
            )


def trainable_config(model: Any, name: str) -> PeftConfig:
    """The adapter's configuration, for training; raises RosaError if it does not fit `model`."""
    from rosa.attention.load import check_adapter, read_adapter_config

    folder = adapter_folder(name)
    check_adapter(model, folder)
    config = read_adapter_config(folder)
    config.inference_mode = False
    return config


def load_weights(adapted: PeftModel, name: str) -> None:
    """Loads the adapter's weights, into float32 parameters, which keep all of their digits.

    `PeftModel.from_pretrained` would round `modules_to_save` to the base model's dtype.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    set_peft_model_state_dict(adapted, load_peft_weights(str(adapter_folder(name)), device="cpu"))
