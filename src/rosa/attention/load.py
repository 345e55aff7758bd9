"""Loading an adapter after checks that raise clear errors before the model is changed.

`PeftModel.from_pretrained` works too; it answers a wrong file with a page of key names, or with a
warning. The checks here hold for the adapter of any PEFT method.
"""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from rosa.attention.peft_compat import PEFT_PREFIX, check_not_offloaded, embedding_names
from rosa.attention.registration import DYPAM, ROSA
from rosa.errors import RosaError
from rosa.rope import detect_unknown


def load_adapter_checked(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """`PeftModel.from_pretrained` for a local folder, after `check_adapter`.

    Warns where a RoSA or DyPAM adapter was trained together with others, which it does not load.
    """
    check_adapter(model, folder)
    others = trained_together(folder)
    if others:
        warnings.warn(
            f"the adapter {folder} was trained together with {', '.join(others)}, of other "
            "methods, which are not loaded; to load all, see docs/guides/quickstart.md",
            stacklevel=2,
        )
    return PeftModel.from_pretrained(
        model, str(folder), adapter_name=adapter_name, is_trainable=is_trainable
    )


def check_adapter(model: nn.Module, folder: str | Path) -> None:
    """Raises RosaError unless the adapter in `folder` is readable and fits `model`.

    It names the missing or damaged file, or the first key that does not fit, with both shapes.
    The model stays as it is: the expected shapes are those of a copy on the meta device. AdaLoRA
    and the few methods that cannot be set up on such a copy are left to PEFT's own loading.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    found = read_shapes(folder / SAFETENSORS_WEIGHTS_NAME)
    if config.peft_type == PeftType.ADALORA:
        return  # pruned to ranks that only PEFT's own loading knows how to fit
    if config.peft_type in (ROSA, DYPAM):
        check_not_offloaded(model)
        detect_unknown(model)  # while it has weights to run with
    try:
        expected = _expected_shapes(model, config, found)
    except RuntimeError:  # BOFT, SHiRA, ...: they compute with weights where they are built
        return
    others = {key for key in found.keys() - expected.keys() if _without_name(key) in expected}
    for key in sorted((found.keys() - others) | expected.keys()):
        if found.get(key) != expected.get(key):
            base = config.base_model_name_or_path or "the one it was trained on"
            rows, _ = saved_vocabulary(model, folder)
            embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
            if rows is not None and rows != embeddings.weight.shape[0]:
                raise RosaError(
                    f"the adapter {folder} was trained with added tokens: call "
                    f"resize_token_embeddings({rows}) on the base model ({base}) first"
                )
            raise RosaError(
                f"the adapter {folder} does not fit this model: {key} is "
                f"{found.get(key, 'not in the file')} where the model needs "
                f"{expected.get(key, 'nothing')}; load it onto its base model ({base})"
            )


def _without_name(key: str) -> str:
    """The key of another adapter's tensor, without the name of that adapter.

    PEFT before 0.21 writes the tensors of all adapters of a method into the file of each.
    """
    parent, _, parameter = key.rpartition(".")
    return f"{parent.rpartition('.')[0]}.{parameter}"


def trained_together(folder: str | Path) -> list[str]:
    """Names of other methods' adapters that PEFT saved as folders in RoSA's or DyPAM's own."""
    own = (ROSA, DYPAM)
    if _peft_type(Path(folder) / CONFIG_NAME) not in own:
        return []
    files = sorted(Path(folder).glob(f"*/{CONFIG_NAME}"))
    return [file.parent.name for file in files if _peft_type(file) not in (*own, None)]


def _peft_type(file: Path) -> str | None:
    """That of a configuration's file; None if it is unreadable or has none."""
    try:
        return json.loads(file.read_text("utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a safetensors file, from its header.

    Raises RosaError for a file that is missing or damaged.
    """
    if not file.is_file():
        raise RosaError(
            f"there is no {file.name} in {file.parent}; adapters are read from safetensors only "
            "(save it again with save_pretrained)"
        )
    try:
        with safe_open(str(file), framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RosaError(f"{file} is damaged and cannot be read ({error}); copy it again") from error


def saved_vocabulary(model: nn.Module, folder: str | Path) -> tuple[int | None, bool]:
    """Rows of the embeddings that an adapter brings along, and whether it brings all of them.

    `model` is the base model, whose embeddings may have fewer rows; the number is None without any.
    """
    shapes = read_shapes(Path(folder) / SAFETENSORS_WEIGHTS_NAME)
    rows, saved, needed = [], set(), set()
    for name in embedding_names(model):
        weight = id(model.get_parameter(f"{name}weight"))  # the same of tied embeddings
        needed.add(weight)
        keys = (f"{PEFT_PREFIX}{name}{kind}weight" for kind in ("", "base_layer."))
        for key in filter(shapes.__contains__, keys):
            rows.append(shapes[key][0])
            saved.add(weight)
    return max(rows, default=None), saved == needed


def read_adapter_config(folder: Path) -> PeftConfig:
    """The adapter's configuration; raises RosaError for a file that is missing or is none."""
    file = folder / CONFIG_NAME
    if not file.is_file():
        raise RosaError(f"there is no {CONFIG_NAME} in {folder}; is it an adapter's folder?")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except RosaError as error:
        raise RosaError(f"{file}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RosaError(f"{file} is not an adapter's configuration ({error})") from error


def _expected_shapes(
    model: nn.Module, config: PeftConfig, found: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Of the adapter's tensors, and of the embeddings where the file holds them as well."""
    if isinstance(model, PeftModel):
        model = model.get_base_model()
    with torch.device("meta"):
        empty = type(model)(copy.deepcopy(model.config))
        adapted = get_peft_model(empty, copy.deepcopy(config), low_cpu_mem_usage=True)
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    with_embeddings = get_peft_model_state_dict(adapted, save_embedding_layers=True)
    saved_along = {key: tensor for key, tensor in with_embeddings.items() if key in found}
    return {key: tuple(tensor.shape) for key, tensor in (saved_along | state).items()}
