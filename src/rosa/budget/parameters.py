"""How many parameters a method trains, counted on PyTorch's meta device: nothing is allocated.

    config = model_shape("Qwen2.5-7B")         # or a local folder, or a hub id
    count(config, "rosa").trainable            # 19927040

The percentage is PEFT's: trainable / all, adapter included. Of a hub id only config.json is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from rosa.errors import RosaError, did_you_mean
from rosa.methods.peft_methods import set_targets
from rosa.methods.registry import load_method, method_config, one_line
from rosa.models.loading import BUILT_IN, resolve_name

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from torch import nn
    from transformers import PretrainedConfig

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ANY_TOTAL_STEPS = 1_000  # AdaLoRA must be given one; it doesn't change the count


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one method trains in one model; both counts are None where it can't be applied."""

    method: str
    title: str
    trainable: int | None
    total: int | None  # base and adapter
    note: str = ""  # also says why there are no counts

    @property
    def percent(self) -> float | None:
        """100 * trainable / total, not rounded."""
        return None if self.trainable is None else 100 * self.trainable / (self.total or 1)


def builtin_models() -> list[str]:
    """Names of the models whose shape the package knows, the embedded model included."""
    names = [file.name for file in _shapes().iterdir()]
    return sorted([*BUILT_IN, *(n.removesuffix(".json") for n in names if n.endswith(".json"))])


def builtin_name(model: str) -> str | None:
    """The built-in name that equals `model` but for case, or None."""
    return next((name for name in builtin_models() if name.lower() == model.lower()), None)


def model_shape(model: str) -> PretrainedConfig:
    """The configuration of a built-in name (case-insensitive), a local folder or a hub id.

    Raises `RosaError`, one sentence, for an unknown name, a folder without a readable config.json,
    a hub id that can't be had and a model type that Transformers doesn't know.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, __version__

    values = _config_values(model)
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        hint = did_you_mean(kind, CONFIG_MAPPING.keys())
        raise RosaError(
            f"config.json of '{model}' has model_type '{kind}', which Transformers {__version__} "
            f"doesn't know{hint}; code that comes with a model is not run"
        )
    try:
        return CONFIG_MAPPING[kind].from_dict(values)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as error:
        reason = one_line(error)
        raise RosaError(
            f"config.json of '{model}' is not a valid {kind} model: {reason}"
        ) from error


def count(config: PretrainedConfig, method: str, overrides: dict[str, Any] | None = None) -> Budget:
    """The budget of one method on a causal language model of the given shape.

    Raises `RosaError` for an unknown method or argument and for a shape that has no causal language
    model. Where the method can't be applied to this architecture the budget's note says why.
    """
    import torch
    from peft import get_peft_model

    chosen = load_method(method)
    peft_config = method_config(chosen.name, overrides, total_steps=_ANY_TOTAL_STEPS)
    set_targets(peft_config, config.model_type)
    with warnings.catch_warnings(), torch.device("meta"), _without_boft_buffers():
        warnings.simplefilter("ignore")
        base = _empty_model(config)
        try:
            model = get_peft_model(base, peft_config, low_cpu_mem_usage=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = one_line(error)
            return Budget(chosen.name, chosen.title, None, None, f"not applicable: {reason}")
    trainable, total = model.get_nb_trainable_parameters()
    return Budget(chosen.name, chosen.title, trainable, total, chosen.note)


def rank_overrides(method: str, rank: int | None) -> dict[str, Any]:
    """The arguments that give `method` another rank; empty for methods that have none."""
    fields = {f.name for f in dataclasses.fields(load_method(method).config_class)}
    for key in ("init_r", "r"):  # AdaLoRA inherits an `r` that it ignores
        if rank is not None and key in fields:
            return {key: rank}
    return {}


def _empty_model(config: PretrainedConfig) -> nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config)
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as error:
        reason = one_line(error)[:200]
        raise RosaError(
            f"no causal language model can be built from this {config.model_type} configuration: "
            f"{reason}"
        ) from error


@contextlib.contextmanager
def _without_boft_buffers() -> Iterator[None]:
    """BOFT without its permutation matrices and CUDA extension.

    The matrices are buffers, in x in per module, and PEFT fills them value by value, which the
    meta device can't; the extension would be compiled on first use. Neither has parameters.
    """
    import torch
    from peft.tuners.boft import layer

    def empty_matrix(self: layer.BOFTLayer, indices: Any) -> torch.Tensor:
        return torch.empty(len(indices), len(indices))

    def in_order(self: layer.BOFTLayer, n: int, *args: Any) -> torch.Tensor:
        return torch.arange(n)

    with (
        mock.patch.object(layer.BOFTLayer, "block_butterfly_perm", in_order),
        mock.patch.object(layer.BOFTLayer, "perm2mat", empty_matrix),
        mock.patch.object(layer, "get_fbd_cuda", return_value=True),
    ):
        yield


def _shapes() -> Traversable:
    """The folder with the config.json of every model that is built in by shape alone."""
    return resources.files("rosa") / "assets" / "models"


def _config_values(model: str) -> dict[str, Any]:
    """The content of config.json, wherever it lies."""
    known = builtin_name(model)
    if known and known not in BUILT_IN:
        return json.loads((_shapes() / f"{known}.json").read_text("utf-8"))
    folder = Path(resolve_name(known or model)).expanduser()
    if folder.is_dir():
        return _folder_config(folder)
    if _HUB_ID.fullmatch(model):
        return _hub_config(model)
    raise RosaError(
        f"there is no model or folder '{model}'{did_you_mean(model, builtin_models())}; give a "
        f"folder with a config.json, a hub id (owner/name) or one of {', '.join(builtin_models())}"
    )


def _folder_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise RosaError(f"the folder '{folder}' holds an adapter; give its base model")
        raise RosaError(f"the folder '{folder}' has no config.json, so it holds no model")
    try:
        values = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RosaError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise RosaError(f"{path} should hold a JSON object and holds a {type(values).__name__}")
    return values


def _hub_config(model: str) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(model)
    except (OSError, ValueError) as error:
        short = builtin_name(model.split("/")[1])
        cure = f"; '{short}' without owner is built in" if short else ""
        reason = str(error).splitlines()[0].rstrip(".")
        raise RosaError(f"config.json of '{model}' can't be fetched: {reason}{cure}") from error
    return values
