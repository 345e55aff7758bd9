"""A RoSA adapter and its base model as one Hugging Face model folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import PeftModel
from transformers import AutoConfig

from rosa.attention.load import read_shapes, trained_together
from rosa.common.files import new_folder
from rosa.common.formatting import format_bytes
from rosa.errors import RosaError, errors_as
from rosa.export.checks import SHARD_SIZE, check_export
from rosa.export.model_card import write_model_card
from rosa.export.source import ExportedClasses, exported_classes
from rosa.export.state import cast_to_base, check_architecture, exported_state, roae_settings
from rosa.models.devices import DTYPES
from rosa.models.loading import (
    adapter_base,
    adapter_folder,
    auto_class,
    load,
    quiet,
    resolve_name,
)
from rosa.ops import use

_PROBE = 16  # tokens


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    file: str  # that has the model's code
    dtype: str
    parameters: int
    factors: int  # of these, RoAE's


def export_adapter(
    adapter: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    max_shard_size: str = SHARD_SIZE,
    say: Callable[[str], object] = lambda _: None,
) -> Exported:
    """Writes the folder `out`, which `AutoModelForCausalLM` loads with `trust_remote_code=True`.

    It needs neither PEFT nor rosa: the base's weights with the trained norms in place, RoAE's
    factors beside them, and the code in one file. Before it is written, the exported model is run
    beside the adapter: logits must be equal bit for bit.

    Args:
        adapter: a folder or hub id.
        dtype: of all weights: "auto" (the base's own), "bf16", "fp16" or "float32".
        max_shard_size: of a weight file, as `save_pretrained` takes it.
        say: told the size before anything is written.

    Raises:
        RosaError: there is no adapter, not one alone, or not RoSA's; its base is missing or of an
            architecture that cannot be exported; `out` is not empty or the disk too small.
    """
    out = Path(out)
    config_file = check_export(adapter, out, dtype, max_shard_size)
    if others := trained_together(config_file.parent):
        raise RosaError(
            f"{adapter} was trained together with {', '.join(others)}, and an export holds one "
            "adapter: merge the others into the base model first"
        )
    base_config = _base_config(adapter_base(adapter, config_file))
    name = _dtype_of(base_config) if dtype == "auto" else dtype
    planned = _planned_bytes(adapter, base_config, name)
    say(f"{out}: {format_bytes(planned)} in {name}\n")
    _check_space(out, planned)
    loaded = load(adapter, dtype=name, device="cpu")
    with quiet(), new_folder(out) as part:
        exported, file = exported_model(loaded.model, part)
        exported.save_pretrained(part, max_shard_size=max_shard_size)
        loaded.tokenizer.save_pretrained(part)
        factors = sum(p.numel() for key, p in exported.named_parameters() if ".rosa." in key)
        facts = {
            "file": file,
            "dtype": name,
            "parameters": exported.num_parameters(),
            "factors": factors,
        }
        write_model_card(part, loaded.base, name=out.name, **facts)
    return Exported(out, **facts)


def exported_model(adapted: PeftModel, folder: Path) -> tuple[Any, str]:
    """The exported model of an adapted one, and the name of the file in `folder` with its code.

    It shares the weights of `adapted`, whose adapter becomes of its base's dtype. Raises RosaError
    as `check_architecture`, and where the logits of both are not equal bit for bit.
    """
    model: Any = adapted.get_base_model()
    check_architecture(model)
    name = adapted.active_adapter
    settings = roae_settings(model, name, adapted.peft_config[name])
    cast_to_base(model, name)
    state = exported_state(model, name)
    classes = exported_classes(model)
    (folder / classes.file).write_text(classes.text, encoding="utf-8")
    exported = _build(classes, folder, model, settings, state)
    tokens = _probe(model)
    if not torch.equal(_logits(exported, tokens), _logits(model, tokens)):
        raise RosaError(
            f"{model.config.model_type} models cannot be exported: the exported model gives other "
            "logits than the adapter; keep the adapter"
        )
    return exported, classes.file


def _base_config(base: str) -> Any:
    with errors_as(f"cannot load the configuration of {base!r}"), quiet():
        return AutoConfig.from_pretrained(resolve_name(base))


def _dtype_of(config: Any) -> str:
    """The name of the dtype that a model was saved in."""
    stored = str(config.dtype).removeprefix("torch.")
    return next((name for name, known in DTYPES.items() if known == stored), "float32")


def _planned_bytes(adapter: str, config: Any, dtype: str) -> int:
    """The size of the weights, from shapes alone. Raises RosaError as `check_architecture`."""
    with torch.device("meta"), quiet():
        empty = auto_class(config).from_config(config)
    check_architecture(empty)
    shapes = read_shapes(adapter_folder(adapter) / "adapter_model.safetensors")
    added = sum(torch.Size(shape).numel() for key, shape in shapes.items() if ".rosa_" in key)
    width = getattr(torch, DTYPES[dtype]).itemsize
    return (sum(p.numel() for p in empty.parameters()) + added) * width


def _check_space(out: Path, needed: int) -> None:
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RosaError(
            f"the export needs {format_bytes(needed)}, but {existing} has {format_bytes(free)} "
            "free; free some space, name another folder or a smaller dtype"
        )


def _build(
    classes: ExportedClasses,
    folder: Path,
    model: Any,
    settings: dict[str, Any],
    state: dict[str, Any],
) -> Any:
    """The exported model, which shares the weights of `model`."""
    module = classes.load(folder)
    values = model.config.to_dict()
    for key in ("model_type", "architectures", "auto_map"):
        values.pop(key, None)
    config = getattr(module, classes.config)(**values, rosa=settings, auto_map=classes.auto_map)
    config._attn_implementation = model.config._attn_implementation
    tied = model._tied_weights_keys or {}
    pairs = [(state[a], state[b]) for a, b in dict(tied).items() if a in state and b in state]
    if not all(torch.equal(*pair) for pair in pairs):  # one of them was trained
        config.tie_word_embeddings = False
    with init_empty_weights():  # buffers, which no file holds, have their values
        exported = getattr(module, classes.head)(config)
    exported.load_state_dict(state, assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    return exported.eval()


def _probe(model: Any) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (2, _PROBE), generator=generator)


def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), use("autograd"):
        return model(input_ids=tokens).logits
