"""Loading a model or an adapter, and its tokenizer, from a hub id, a folder or a built-in name.

Transformers and PEFT load them. This file adds checks: weights are safetensors only, and a tensor
that is missing or of another shape is an error with its file and key, never left at random values.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.assets import ASSETS
from rosa.errors import RosaError, errors_as, one_line
from rosa.models.devices import pick_device, pick_dtype
from rosa.models.quantization import keep_gradients, loading_options

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = ("rosa-tiny",)
_NOT_FOUND = "there is no folder {0!r}, and no model of that name can be had from the hub"


@dataclass(frozen=True)
class Loaded:
    """A model ready for generation. `adapter` is None for a plain base model."""

    model: Any
    tokenizer: Any
    name: str
    base: str
    adapter: str | None
    quantization: str | None = None


def tiny_model_path() -> str:
    """The folder of `rosa-tiny`, the toy model that comes with the package."""
    return str(ASSETS / "rosa-tiny")


def resolve_name(name: str, relative_to: Path | None = None) -> str:
    """The folder of a built-in model, or the given folder or hub id unchanged.

    `relative_to` is a second place to look for a relative folder (an adapter's own folder).
    """
    if name in BUILT_IN:
        return str(ASSETS / name)
    if relative_to is not None and not Path(name).exists() and (relative_to / name).is_dir():
        return str(relative_to / name)
    return name


def is_hub_id(name: str) -> bool:
    """Whether `name` is neither built in nor a local path: then it is an id on the hub."""
    return name not in BUILT_IN and not Path(name).exists() and not _looks_local(name)


def short_name(name: str) -> str:
    """The last part of a hub id or path: `Qwen/Qwen2.5-7B` gives `Qwen2.5-7B`."""
    return Path(name).resolve().name if Path(name).exists() else name.rstrip("/").split("/")[-1]


def load_base_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The causal language model `name`: a hub id, a local folder or a built-in name.

    A vision-language model is used by its text model, on text alone.

    `quantization` loads its linear layers in 4 bits ("nf4") or 8 ("int8"); `attn_implementation` is
    Transformers' name of an attention kernel.

    Raises RosaError if the folder has no `config.json`, the weights are missing, damaged or of
    other shapes than the configuration says, or the hub cannot be reached.
    """
    from transformers import AutoConfig

    path = resolve_name(name)
    weights = _check_folder(name, path)
    if weights:
        from rosa.attention.load import read_shapes

        for file in weights:
            read_shapes(file)
    where = pick_device(device)
    compute_dtype = pick_dtype(dtype, where)
    origin = "" if Path(path).is_dir() else " from the hub (there is no folder of that name)"
    with errors_as(f"cannot load the model {name!r}{origin}"), quiet():
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        loaded: Any = auto_class(config).from_pretrained(
            path,
            dtype=compute_dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # raised below, with the key
            output_loading_info=True,
            **loading_options(quantization, compute_dtype, where),
        )
    model, info = loaded
    for key, in_file, expected in sorted(info["mismatched_keys"]):
        raise RosaError(
            f"the weights of {name!r} do not fit its config.json: {key} is {tuple(in_file)} in the "
            f"file and {tuple(expected)} in the model"
        )
    for key in sorted(info["missing_keys"]):
        raise RosaError(
            f"the weights of {name!r} lack {key}; the file is incomplete or belongs to another "
            "architecture"
        )
    if getattr(model, "is_quantized", False):  # already on its device
        keep_gradients(model)
        return model
    return model.to(where)


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class of causal language models, or of vision-language models where it is one."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, with a padding token (its end-of-text token if it has none)."""
    from transformers import AutoTokenizer

    path = resolve_name(name)
    check_exists(name)
    with errors_as(f"cannot load the tokenizer of {name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise RosaError(
            f"the tokenizer of {name!r} has no words: its tokenizer.json is missing or empty"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise RosaError(f"the tokenizer of {name!r} has no pad_token, eos_token or unk_token")
    return tokenizer


def load(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """The model or adapter `name` in eval mode, with its tokenizer.

    A folder or hub repository with an `adapter_config.json` is an adapter; its base model is the
    one that file names.
    """
    config_file = find_adapter_config(name)
    base = adapter_base(name, config_file) if config_file else name
    model: Any = load_base_model(
        base,
        dtype=dtype,
        device=device,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    source = tokenizer_source(name, base)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    if config_file:
        fit_embeddings(model, tokenizer, name)
        model = load_adapter(model, name)
    check_vocabulary(model, tokenizer, name)
    adapter = name if config_file else None
    return Loaded(model.eval(), tokenizer, name, base, adapter, quantization)


def tokenizer_source(adapter: str, base: str) -> str:
    """The adapter, where a tokenizer was saved with it, else its base model."""
    file = find_adapter_config(adapter)
    if file and is_hub_id(adapter):
        from transformers.utils import cached_file

        # Asked for by name: beside adapter_config.json lies only what was downloaded before.
        flags = ("missing_entries", "connection_errors", "gated_repo")
        quietly = {f"_raise_exceptions_for_{flag}": False for flag in flags}
        found = cached_file(adapter, "tokenizer_config.json", **quietly)
        return adapter if found else base
    return adapter if file and (file.parent / "tokenizer_config.json").is_file() else base


def find_adapter_config(name: str) -> Path | None:
    """The `adapter_config.json` of `name`, local or on the hub; None if it is not an adapter."""
    path = resolve_name(name)
    if name in BUILT_IN or Path(path).is_dir():
        file = Path(path) / "adapter_config.json"
        return file if file.is_file() else None
    check_exists(name)
    from transformers.utils.peft_utils import find_adapter_config_file

    with errors_as(_NOT_FOUND.format(name)):
        found = find_adapter_config_file(name)
    return Path(found) if found else None


def adapter_base(name: str, config_file: Path) -> str:
    """The base model that an adapter's configuration names, as a loadable name."""
    base = read_adapter_json(config_file).get("base_model_name_or_path")
    if not base:
        raise RosaError(f"{config_file} names no base_model_name_or_path; add the base model there")
    base = resolve_name(base, relative_to=Path(name)) if base not in BUILT_IN else base
    if _looks_local(base) and not Path(base).is_dir():
        if Path(base).name in BUILT_IN:  # trained on another machine
            return Path(base).name
        raise RosaError(
            f"the base model {base} of the adapter {name!r} does not exist; correct "
            f"base_model_name_or_path in {config_file}"
        )
    return base


def read_adapter_json(config_file: Path) -> dict[str, Any]:
    """The content of an `adapter_config.json`, read without PEFT."""
    try:
        return dict(json.loads(config_file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RosaError(f"cannot read {config_file}: {one_line(error)}") from error


def default_folder(name: str, inside: str, outside: str) -> Path:
    """The results folder of `name`: `inside` a local adapter, else `runs/outside-NAME`."""
    if Path(name).is_dir() and find_adapter_config(name):
        return Path(name) / inside
    return Path("runs") / f"{outside}-{short_name(name)}"


def load_adapter(model: PreTrainedModel, name: str, *, is_trainable: bool = False) -> PeftModel:
    """`model` with the adapter `name` attached; every tensor of its file must fit the model."""
    from rosa.roae import load_adapter_checked

    with errors_as(f"cannot attach the adapter {name!r}"), quiet():
        return load_adapter_checked(model, adapter_folder(name), is_trainable=is_trainable)


def fit_embeddings(model: Any, tokenizer: Any, name: str) -> None:
    """Resizes a base model whose adapter was trained with added tokens.

    To the rows of the embeddings that the adapter brings along; without any, to its tokenizer's
    size where that is larger, as PEFT's `AutoPeftModel` does. Warns of rows that are not saved.
    """
    import torch

    from rosa.attention.load import saved_vocabulary

    rows = model.get_input_embeddings().weight.shape[0]
    saved, all_saved = saved_vocabulary(model, adapter_folder(name))
    wanted = saved or max(rows, len(tokenizer))
    if wanted == rows:
        return
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)  # the same new rows in each evaluation
        model.resize_token_embeddings(wanted, mean_resizing=not all_saved)
    if not all_saved:
        warnings.warn(
            f"the adapter {name!r} was trained with {wanted - rows} more tokens than its base "
            "model has, and lacks embeddings for them, so theirs are random; train and save it "
            'with modules_to_save=["embed_tokens", "lm_head"]',
            stacklevel=2,
        )


def adapter_folder(name: str) -> Path:
    """The local folder of an adapter; one on the hub is downloaded, safetensors only."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    with errors_as(f"cannot download the adapter {name!r}"):
        return Path(snapshot_download(name, allow_patterns=["adapter_*.json", "*.safetensors"]))


def check_exists(name: str) -> None:
    """A name that looks like a path must exist; the hub's error for it would be confusing."""
    path = resolve_name(name)
    if path.endswith(".gguf"):
        raise RosaError(
            f"{path} is a GGUF file; convert it first, with `rosa convert {path} FOLDER`, and give "
            "the folder"
        )
    if not Path(path).is_dir() and (name in BUILT_IN or _looks_local(path)):
        raise RosaError(f"there is no folder {path}; give a model folder, a hub id or 'rosa-tiny'")


def _looks_local(path: str) -> bool:
    folder = path.partition("/")[0]
    is_path = Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    return is_path or ("/" in path and Path(folder).is_dir())  # `runs/x` where there is `runs`


def check_model_files(name: str) -> None:
    """Raises RosaError, before PyTorch is imported, where a model or adapter lacks files.

    Of a base model on the hub, its `config.json` is looked up.
    """
    config_file = find_adapter_config(name)
    base = adapter_base(name, config_file) if config_file else name
    path = resolve_name(base)
    _check_folder(base, path)
    if not Path(path).is_dir():
        from transformers.utils import cached_file

        with errors_as(_NOT_FOUND.format(base)):
            cached_file(base, "config.json")


def _check_folder(name: str, path: str) -> list[Path]:
    """The weight files of a model folder, of which there must be some; none for a hub id."""
    check_exists(name)
    folder = Path(path)
    if not folder.is_dir():
        return []
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise RosaError(f"{folder} is an adapter, not a base model; give its base model here")
        if (folder / "recipe.yaml").is_file():
            raise RosaError(
                f"{folder} holds a run without an adapter, so it has not finished; continue it "
                f"with rosa train {folder / 'recipe.yaml'} --resume"
            )
        raise RosaError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise RosaError(f"{folder} has no .safetensors file; weights of other kinds are not read")
    return weights


@contextmanager
def quiet() -> Iterator[None]:
    """Turns off the libraries' progress bars and warnings; this file raises what matters."""
    from transformers.utils import logging

    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="peft|transformers")
            yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """The model has an embedding for every token.

    Raises:
        RosaError: the tokenizer belongs to a model with more tokens.
    """
    rows, tokens = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if tokens >= rows:
        raise RosaError(
            f"the tokenizer of {name!r} has the token id {tokens}, but its model has only {rows} "
            "embeddings; use the tokenizer that belongs to the model"
        )
