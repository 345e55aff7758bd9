"""How many parameters a PEFT method trains, counted on PyTorch's meta device (nothing allocated).

    config = load_model_config("Qwen2.5-7B")      # a built-in name, a local folder or a hub id
    count_parameters(config, "rosa").trainable    # 19927040

Percentages are PEFT's, 100 * trainable / all with the adapter. Only config.json is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from rosa.assets import ASSETS
from rosa.errors import RosaError, did_you_mean, errors_as, one_line
from rosa.methods.peft_methods import set_default_targets
from rosa.methods.registry import Method, load_method, method_config
from rosa.models.loading import BUILT_IN, auto_class, resolve_name

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

_CONFIGS = ASSETS / "models"  # config.json of the models that are built in without weights
_OWNERS = ("Qwen", "meta-llama", "google")  # who publish those models on the hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TOTAL_STEPS = 1_000  # AdaLoRA requires a value; the count does not depend on it


@dataclasses.dataclass(frozen=True)
class ParameterCount:
    """What one method trains in one model; both counts are None where it cannot be applied."""

    method: str
    title: str
    trainable: int | None
    total: int | None  # base and adapter
    note: str = ""  # why it differs from the paper, or why there are no counts
    paper_percent: float | None = None  # what the paper's Table 1 prints

    @property
    def percent(self) -> float | None:
        """100 * trainable / total, not rounded."""
        return None if self.trainable is None else 100 * self.trainable / (self.total or 1)

    @property
    def differs(self) -> bool:
        """Whether the paper prints another percentage (to its three decimals)."""
        known = self.percent is not None and self.paper_percent is not None
        return known and round(self.percent or 0, 3) != self.paper_percent

    def to_json(self, model: str) -> dict[str, Any]:
        """The row that `rosa params --json` prints."""
        return {"model": model, **dataclasses.asdict(self), "percent": self.percent}


def builtin_models() -> list[str]:
    """Names of the models whose configuration the package holds, the embedded model included."""
    return sorted([*BUILT_IN, *(file.stem for file in _CONFIGS.glob("*.json"))])


def model_label(model: str) -> str:
    """A built-in name in its own spelling ("qwen2.5-7b": "Qwen2.5-7B"), else `model` as it is."""
    return next((name for name in builtin_models() if name.lower() == model.lower()), model)


def matching_builtin(model: str) -> str:
    """The built-in configuration of a hub id: `google/gemma-2-9b` is `Gemma2-9B`; else the id.

    A folder is itself.
    """
    if Path(model).is_dir():
        return model
    names = {_letters(name): name for name in builtin_models()}
    return names.get(_letters(model.split("/")[-1].removesuffix("-hf")), model)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", name.lower())


def load_model_config(model: str) -> PretrainedConfig:
    """The configuration of a built-in name (case-insensitive), a local folder or a hub id.

    Raises RosaError for an unknown name, a folder without a readable config.json, a hub id that
    cannot be fetched and a model type that Transformers does not know.
    """
    values = _config_values(model)  # before the slow import: a mistyped name fails at once
    from transformers import CONFIG_MAPPING, __version__

    if not isinstance(values, dict):
        raise RosaError(f"config.json of '{model}' must hold a JSON object")
    model_type = str(values.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        hint = did_you_mean(model_type, CONFIG_MAPPING.keys())
        raise RosaError(
            f"config.json of '{model}' has model_type '{model_type}', which Transformers "
            f"{__version__} does not know{hint}; remote code is not run"
        )
    with errors_as(f"config.json of '{model}' is not a valid {model_type} configuration"):
        return CONFIG_MAPPING[model_type].from_dict(values)


def count_parameters(
    config: PretrainedConfig, method: str, arguments: dict[str, Any] | None = None
) -> ParameterCount:
    """What one method, with these arguments of its PEFT config, trains in a causal language model.

    Where the method cannot be applied to this architecture, the counts are None and the note says
    why. Raises RosaError for an unknown method or argument and for a configuration that has no
    causal language model.
    """
    import torch
    from peft import get_peft_model

    chosen = load_method(method)
    peft_config = method_config(chosen.name, arguments, total_steps=_TOTAL_STEPS)
    set_default_targets(peft_config, config.model_type)
    with warnings.catch_warnings(), torch.device("meta"), _without_boft_buffers():
        warnings.simplefilter("ignore")
        base = _empty_model(config)
        try:
            model = get_peft_model(base, peft_config, low_cpu_mem_usage=True)
        except (ValueError, TypeError, NotImplementedError) as error:
            note = f"not applicable: {one_line(error)}"
            return ParameterCount(chosen.name, chosen.title, None, None, note)
    trainable, total = model.get_nb_trainable_parameters()
    return ParameterCount(chosen.name, chosen.title, trainable, total, chosen.note)


def count_methods(
    model: str, methods: Iterable[tuple[Method, dict[str, Any]]]
) -> list[ParameterCount]:
    """The count of each method with its arguments, and the paper's percentage without any.

    Raises RosaError where none of the methods can be applied, else as `count_parameters`.
    """
    config, label, counts = load_model_config(model), model_label(model), []
    for method, arguments in methods:
        printed = None if arguments else method.paper_percent.get(label)
        count = count_parameters(config, method.name, arguments)
        counts.append(dataclasses.replace(count, paper_percent=printed))
    if all(count.trainable is None for count in counts):
        raise RosaError(f"nothing to count in '{label}': {counts[0].title} is {counts[0].note}")
    return counts


def base_parameters(config: PretrainedConfig) -> int:
    """The parameters of a causal language model without an adapter; tied weights count once."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _empty_model(config).parameters())


def rank_arguments(method: str, rank: int | None) -> dict[str, Any]:
    """The arguments that give `method` another rank; empty for methods without a rank."""
    fields = {f.name for f in dataclasses.fields(load_method(method).config_class)}
    for key in ("init_r", "r"):  # AdaLoRA inherits an `r` that it ignores
        if rank is not None and key in fields:
            return {key: rank}
    return {}


def _empty_model(config: PretrainedConfig) -> nn.Module:
    with errors_as(f"no causal language model can be built from this {config.model_type} config"):
        return auto_class(config).from_config(config)


@contextlib.contextmanager
def _without_boft_buffers() -> Iterator[None]:
    """BOFT without its permutation matrices and CUDA extension, which have no parameters.

    The matrices (in x in per module) are filled value by value, which the meta device cannot do;
    the extension would be compiled on first use.
    """
    import torch
    from peft.tuners.boft import layer

    module = layer.BOFTLayer
    with (
        mock.patch.object(module, "block_butterfly_perm", lambda self, n, *_: torch.arange(n)),
        mock.patch.object(module, "perm2mat", lambda self, found: torch.empty([len(found)] * 2)),
        mock.patch.object(layer, "get_fbd_cuda", return_value=True),
    ):
        yield


def _config_values(model: str) -> dict[str, Any]:
    """The content of a model's config.json."""
    label = model_label(model)
    if (builtin := _CONFIGS / f"{label}.json").is_file():
        return json.loads(builtin.read_text("utf-8"))
    folder = Path(resolve_name(label)).expanduser()
    if not folder.is_dir() and not _HUB_ID.fullmatch(model):
        names = ", ".join(builtin_models())
        raise RosaError(
            f"there is no model or folder '{model}'{did_you_mean(model, builtin_models())}; give a "
            f"folder with a config.json, a hub id (owner/name) or one of {names}"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        is_adapter = (folder / "adapter_config.json").is_file()
        why = "holds an adapter; give its base model" if is_adapter else "has no config.json"
        raise RosaError(f"the folder '{folder}' {why}")
    from transformers import PretrainedConfig

    source = str(folder) if folder.is_dir() else model
    with errors_as(f"cannot read config.json of '{model}'"):
        try:
            return PretrainedConfig.get_config_dict(source)[0]
        except OSError as error:
            built_in = matching_builtin(model)
            if built_in == model or model.split("/")[0] not in _OWNERS:
                raise
            warnings.warn(
                f"config.json of '{model}' cannot be read from the hub ({one_line(error)[:80]}); "
                f"the built-in configuration {built_in} is used",
                stacklevel=2,
            )
            return json.loads((_CONFIGS / f"{built_in}.json").read_text("utf-8"))
