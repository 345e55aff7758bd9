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

from rosa.errors import RosaError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILT_IN = ("rosa-tiny",)
ASSETS = Path(__file__).resolve().parent.parent / "assets"
DTYPES = ("auto", "bf16", "float32")


@dataclass(frozen=True)
class Loaded:
    """A model ready for generation. `adapter` is None for a plain base model."""

    model: Any
    tokenizer: Any
    name: str
    base: str
    adapter: str | None


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
    """`auto` is bfloat16 where the device computes in it (CUDA), float32 elsewhere."""
    import torch

    if dtype not in DTYPES:
        raise RosaError(f"unknown dtype {dtype!r}; say one of {', '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if dtype == "bf16" else torch.float32


def load_base_model(
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The causal language model `name`: a hub id, a local folder or a built-in name.

    Raises RosaError where the folder has no `config.json`, the weights are missing, damaged or of
    other shapes than the configuration says, or the hub cannot be reached.
    """
    from transformers import AutoModelForCausalLM

    path = resolve_name(name)
    _check_folder(name, path)
    where = pick_device(device)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=pick_dtype(dtype, where),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported below, with the key
                output_loading_info=True,
            )
    except RosaError:
        raise
    except Exception as error:
        where_from = "" if Path(path).is_dir() else " (no folder of that name, so from the hub)"
        raise RosaError(
            f"cannot load the model {name!r}{where_from}: {_first_line(error)}"
        ) from error
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
    return model.to(where)


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, with a padding token (its end-of-text token where it has none)."""
    from transformers import AutoTokenizer

    path = resolve_name(name)
    _check_exists(name, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RosaError(f"cannot load the tokenizer of {name!r}: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise RosaError(f"the tokenizer of {name!r} has no pad_token, eos_token or unk_token")
    return tokenizer


def load(
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> Loaded:
    """The model or adapter `name` in eval mode, with its tokenizer.

    A folder or hub repository with an `adapter_config.json` is an adapter; its base model is the
    one that file names.
    """
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config_file = find_adapter_config(name)
    if config_file is None:
        model: Any = load_base_model(name, dtype=dtype, device=device, **options)
        tokenizer = load_tokenizer(name, **options)
        return Loaded(model.eval(), tokenizer, name, name, None)
    base = adapter_base(name, config_file)
    model = load_adapter(load_base_model(base, dtype=dtype, device=device, **options), name)
    has_own_tokenizer = (config_file.parent / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(name if has_own_tokenizer else base, **options)
    return Loaded(model.eval(), tokenizer, name, base, name)


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
        raise RosaError(f"cannot look up {name!r}: {_first_line(error)}") from error
    return Path(found) if found else None


def adapter_base(name: str, config_file: Path) -> str:
    """The base model that an adapter's configuration names, as a loadable name."""
    try:
        base = json.loads(config_file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise RosaError(f"cannot read {config_file}: {_first_line(error)}") from error
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
    """`model` with the adapter `name` attached; every tensor of the file must fit it.

    PEFT alone warns of missing keys and ignores those that it does not know: an adapter of
    another base model would be scored half-loaded.
    """
    from peft import PeftModel

    import rosa.roae  # noqa: F401  registers RoSA with PEFT

    shapes = _adapter_shapes(name)
    try:
        with quiet():
            adapted = PeftModel.from_pretrained(
                model, name, is_trainable=is_trainable, ignore_mismatched_sizes=True
            )
    except RosaError:
        raise
    except KeyError as error:  # how PEFT meets a trained norm that the file does not hold
        raise RosaError(
            f"the adapter {name!r} does not fit the base model {_name_of(model)}: its weights lack "
            f"{error.args[0]}"
        ) from error
    except Exception as error:
        raise RosaError(
            f"cannot attach the adapter {name!r} to {_name_of(model)}: {_first_line(error)}"
        ) from error
    _check_adapter_fits(adapted, name, shapes)
    return adapted


def _check_adapter_fits(adapted: PeftModel, name: str, in_file: dict[str, tuple[int, ...]]) -> None:
    from peft import get_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    embeddings = set(adapted.state_dict())  # a file may carry whole embeddings under their names
    prefix = f"the adapter {name!r} does not fit the base model {_name_of(adapted)}"
    for key, tensor in expected.items():
        if key not in in_file:
            raise RosaError(f"{prefix}: its weights lack {key}")
        if in_file[key] != tuple(tensor.shape):
            raise RosaError(
                f"{prefix}: {key} is {in_file[key]} in the adapter's file and "
                f"{tuple(tensor.shape)} in the model"
            )
    for key in in_file:
        if key not in expected and key not in embeddings:
            raise RosaError(f"{prefix}: it holds {key}, which the model does not have")


def _adapter_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the adapter's file, read from its header alone."""
    file = Path(name) / "adapter_model.safetensors"
    if not Path(name).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(name, file.name))
        except Exception as error:
            raise RosaError(f"cannot fetch {file.name} of {name!r}: {error}") from error
    if not file.is_file():
        raise RosaError(
            f"{file} does not exist; adapters are read from safetensors only (save it again with "
            "save_pretrained)"
        )
    return safetensors_shapes(file)


def safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a safetensors file; RosaError where the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RosaError(
            f"{file} is damaged or not a safetensors file ({_first_line(error)}); copy it again"
        ) from error


def _check_exists(name: str, path: str) -> None:
    """A name that looks like a path must exist: the hub would only give a confusing answer."""
    if not Path(path).is_dir() and (name in BUILT_IN or _looks_local(path)):
        raise RosaError(f"there is no folder {path}; give a model folder, a hub id or 'rosa-tiny'")


def _looks_local(path: str) -> bool:
    return Path(path).is_absolute() or path.startswith((".", "~")) or path.count("/") > 1


def _check_folder(name: str, path: str) -> None:
    """A local model folder has a configuration and undamaged safetensors weights."""
    _check_exists(name, path)
    folder = Path(path)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise RosaError(f"{folder} is an adapter, not a base model; give its base model here")
        raise RosaError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise RosaError(f"{folder} has no .safetensors file; weights of other kinds are not read")
    for file in weights:
        safetensors_shapes(file)


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


def _name_of(model: Any) -> str:
    return repr(getattr(getattr(model, "config", None), "_name_or_path", "") or "(unnamed)")


def _first_line(error: BaseException) -> str:
    """The gist of a library's error: its first line with words in it."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
