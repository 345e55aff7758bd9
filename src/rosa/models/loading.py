"""Loading a model or an adapter, and its tokenizer, from a hub id, a folder or a built-in name.

Everything goes through Transformers and PEFT. What this file adds is strictness: weights are
safetensors only, no tensor is ever left at random values in silence, and what does not fit is
answered with the file and the key.
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
from rosa.errors import RosaError
from rosa.models.quantization import check_quantization, keep_gradients, loading_options

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = ("rosa-tiny",)
DTYPES = ("auto", "bf16", "fp16", "float32")


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


def short_name(name: str) -> str:
    """The last part of a hub id or path: `Qwen/Qwen2.5-7B` gives `Qwen2.5-7B`."""
    return Path(name).resolve().name if Path(name).exists() else name.rstrip("/").split("/")[-1]


def pick_device(device: str = "auto") -> torch.device:
    """`auto` takes CUDA, then Apple's MPS, then the CPU."""
    import torch

    if device == "auto":
        if torch.cuda.is_available():
            device = "cuda"
        else:
            device = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise RosaError(f"unknown device {device!r}; say auto, cpu, cuda, cuda:1 or mps") from None
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise RosaError(f"device {device!r} was asked for but PyTorch sees no CUDA device")
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it (`computes_in_bf16`), else float32.

    Raises:
        RosaError: the name is unknown.
    """
    import torch

    if dtype not in DTYPES:
        raise RosaError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "bf16" if computes_in_bf16(device) else "float32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}[dtype]


def computes_in_bf16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices run in hardware, not by emulation.

    Emulated, they are slower than float32: about twice on CUDA devices before Ampere, 44 to 499
    times on CPUs with AVX2 alone (pytorch issue 146508).
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        has_unit = any(getattr(torch.cpu, unit, lambda: False)() for unit in units)
        return has_unit and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return False


def load_base_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The causal language model `name`: a hub id, a local folder or a built-in name.

    `quantization` puts its linear layers into 4 bits ("nf4") or 8 ("int8").

    Raises RosaError where the folder has no `config.json`, the weights are missing, damaged or of
    other shapes than the configuration says, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_name(name)
    weights = _check_folder(name, path)
    check_quantization(quantization)
    if weights:
        from rosa.roae.load import read_shapes

        for file in weights:
            read_shapes(file)
    where = pick_device(device)
    computing = pick_dtype(dtype, where)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=computing,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with the key
                output_loading_info=True,
                **loading_options(quantization, computing, where),
            )
    except RosaError:
        raise
    except Exception as error:
        where_from = "" if Path(path).is_dir() else " (no folder of that name, so from the hub)"
        raise RosaError(f"cannot load the model {name!r}{where_from}: {_gist(error)}") from error
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
    if getattr(model, "is_quantized", False):  # it lies where it was loaded to
        keep_gradients(model)
        return model
    return model.to(where)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, with a padding token (its end-of-text token where it has none)."""
    from transformers import AutoTokenizer

    path = resolve_name(name)
    _check_exists(name, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RosaError(f"cannot load the tokenizer of {name!r}: {_gist(error)}") from error
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
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    for_base = {"dtype": dtype, "device": device, "quantization": quantization, **options}
    config_file = find_adapter_config(name)
    if config_file is None:
        model: Any = load_base_model(name, **for_base)
        tokenizer = load_tokenizer(name, **options)
        check_vocabulary(model, tokenizer, name)
        return Loaded(model.eval(), tokenizer, name, name, None, quantization)
    base = adapter_base(name, config_file)
    model = load_adapter(load_base_model(base, **for_base), name)
    has_own_tokenizer = (config_file.parent / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(name if has_own_tokenizer else base, **options)
    check_vocabulary(model, tokenizer, name)
    return Loaded(model.eval(), tokenizer, name, base, name, quantization)


def find_adapter_config(name: str) -> Path | None:
    """The `adapter_config.json` of `name`, local or on the hub; None where it is no adapter."""
    path = resolve_name(name)
    if name in BUILT_IN or Path(path).is_dir():
        file = Path(path) / "adapter_config.json"
        return file if file.is_file() else None
    from transformers.utils.peft_utils import find_adapter_config_file

    _check_exists(name, path)
    try:
        found = find_adapter_config_file(name)
    except Exception as error:
        raise RosaError(f"cannot look up {name!r}: {_gist(error)}") from error
    return Path(found) if found else None


def adapter_base(name: str, config_file: Path) -> str:
    """The base model that an adapter's configuration names, as a loadable name."""
    try:
        base = json.loads(config_file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise RosaError(f"cannot read {config_file}: {_gist(error)}") from error
    if not base:
        raise RosaError(f"{config_file} names no base_model_name_or_path; add the base model there")
    base = resolve_name(base, relative_to=Path(name)) if base not in BUILT_IN else base
    if _looks_local(base) and not Path(base).is_dir():
        if Path(base).name in BUILT_IN:  # trained on another machine, where the package lay there
            return Path(base).name
        raise RosaError(
            f"the base model {base} of the adapter {name!r} is not there; correct "
            f"base_model_name_or_path in {config_file}"
        )
    return base


def load_adapter(model: PreTrainedModel, name: str, *, is_trainable: bool = False) -> PeftModel:
    """`model` with the adapter `name` attached; every tensor of its file must fit the model."""
    from rosa.roae import load_adapter_checked

    try:
        with quiet():
            return load_adapter_checked(model, _adapter_folder(name), is_trainable=is_trainable)
    except RosaError:
        raise
    except Exception as error:
        raise RosaError(f"cannot attach the adapter {name!r}: {_gist(error)}") from error


def _adapter_folder(name: str) -> Path:
    """The local folder of an adapter; one on the hub is fetched, safetensors only."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["adapter_*.json", "*.safetensors"]))
    except Exception as error:
        raise RosaError(f"cannot fetch the adapter {name!r}: {_gist(error)}") from error


def _check_exists(name: str, path: str) -> None:
    """A name that looks like a path must exist: the hub would only give a confusing answer."""
    if path.endswith(".gguf"):
        raise RosaError(
            f"{path} is a GGUF file; convert it first, with `rosa convert {path} FOLDER`, and give "
            "the folder"
        )
    if not Path(path).is_dir() and (name in BUILT_IN or _looks_local(path)):
        raise RosaError(f"there is no folder {path}; give a model folder, a hub id or 'rosa-tiny'")


def _looks_local(path: str) -> bool:
    return Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1


def check_model_files(name: str) -> None:
    """Raises RosaError, before PyTorch is imported, where a local model or adapter lacks files.

    A hub id is not looked up.
    """
    path = resolve_name(name)
    _check_exists(name, path)
    if Path(path).is_dir():
        config_file = find_adapter_config(name)
        base = adapter_base(name, config_file) if config_file else name
        _check_folder(base, resolve_name(base))


def _check_folder(name: str, path: str) -> list[Path]:
    """The weight files of a model folder, of which there must be some; none for a hub id."""
    _check_exists(name, path)
    folder = Path(path)
    if not folder.is_dir():
        return []
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise RosaError(f"{folder} is an adapter, not a base model; give its base model here")
        raise RosaError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise RosaError(f"{folder} has no .safetensors file; weights of other kinds are not read")
    return weights


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and reports: what matters in them is raised here."""
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
            f"the tokenizer of {name!r} has a token number {tokens}, but its model has only {rows} "
            "embeddings; use the tokenizer that belongs to the model"
        )


def _gist(error: BaseException) -> str:
    """A library's error on one line, cut where it goes on for long."""
    return " ".join(str(error).split())[:300] or type(error).__name__
