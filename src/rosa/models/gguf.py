"""Conversion of a GGUF file to a Hugging Face model folder.

Transformers reads and dequantizes the file. What this module adds: the checks before it, and a
folder that appears only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from rosa.common.files import check_new_folder, new_folder
from rosa.errors import RosaError, errors_as
from rosa.models.devices import DTYPES
from rosa.models.loading import quiet

NOTE = "converted_from.json"
_CARD = """---
library_name: transformers
tags: [gguf, dequantized]
---

# {name}

Dequantized from `{file}` ({tensors}; SHA-256 `{sha256}`) to {dtype} with `rosa convert`. These are
not the weights that were published before quantization. The license is that of the original model.
"""


@dataclass(frozen=True)
class GgufFile:
    """What the header of a GGUF file says; `tensors` counts them by quantization type."""

    file: str
    sha256: str
    architecture: str
    tensors: dict[str, int]


def convert_gguf(file: Path, out: Path, dtype: str = "bf16") -> Any:
    """Writes `file` as a Hugging Face folder and returns the model, a `PreTrainedModel`.

    The folder `out` gets config, safetensors weights in `dtype` ("bf16", "fp16" or "float32"), the
    tokenizer with its chat template, generation settings, a model card, and `converted_from.json`.
    Memory peaks near the size of the result and one float32 tensor.

    Raises:
        RosaError: the file is missing, damaged, no GGUF file or of an architecture that
            Transformers cannot read; `out` is not empty or cannot be written.
    """
    check_conversion(file, out, dtype)
    source = read_header(file)
    model, tokenizer = _load(file, DTYPES[dtype])
    note = {**asdict(source), "dtype": dtype}
    with quiet(), new_folder(out) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        tensors = ", ".join(f"{count} tensors in {kind}" for kind, count in source.tensors.items())
        card = _CARD.format(**{**note, "name": out.name, "tensors": tensors})
        (part / "README.md").write_text(card, encoding="utf-8")
    return model


def check_conversion(file: Path, out: Path, dtype: str) -> None:
    """Everything that can be checked before heavy libraries are imported; raises RosaError."""
    if not file.is_file():
        raise RosaError(f"there is no file {file}; give a .gguf file")
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise RosaError(f"{file} is not a GGUF file: it does not begin with 'GGUF'")
    if dtype not in DTYPES:
        raise RosaError(f"unknown dtype {dtype!r}; choose from {', '.join(DTYPES)}")
    check_new_folder(out)
    if find_spec("gguf") is None:
        raise RosaError("GGUF files need the package gguf; run: pip install 'rosa-peft[gguf]'")


def read_header(file: Path) -> GgufFile:
    """The header of a GGUF file and its checksum.

    Raises:
        RosaError: the file is damaged or its architecture is unknown to Transformers.
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(file)
        architecture = str(reader.fields["general.architecture"].contents())
        tensors = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    except Exception as error:  # numpy's and gguf's own, of many kinds
        raise RosaError(f"{file} is damaged or incomplete: {error}") from error
    # Transformers spells some with an underscore where llama.cpp has a hyphen or nothing.
    known = {name.replace("_", "").replace("-", "") for name in GGUF_SUPPORTED_ARCHITECTURES}
    if architecture.replace("_", "").replace("-", "") not in known:
        raise RosaError(
            f"{file} has the architecture {architecture!r}, which Transformers does not read"
            f", only {', '.join(sorted(GGUF_SUPPORTED_ARCHITECTURES))}"
        )
    with file.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return GgufFile(file.name, digest.hexdigest(), architecture, dict(tensors.most_common()))


def _load(file: Path, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer as Transformers reads them, without progress bars."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # The reader's progress bar can only be turned off with stderr.
    with errors_as(f"Transformers cannot read {file}"), quiet(), redirect_stderr(StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),  # kernels could keep its blocks
        )
    for name, weight in model.named_parameters():
        if weight.device.type == "meta" or not torch.isfinite(weight).all():
            raise RosaError(f"{file} is damaged: {name} is missing or holds values not finite")
    if model.config.model_type == "gemma3_text":
        _set_attention_scale(model)
    # What is saved is no longer quantized; `save_pretrained` would raise otherwise.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def _set_attention_scale(model: Any) -> None:
    """Gemma3's `query_pre_attn_scalar` by llama.cpp's rule: GGUF does not store it."""
    config = model.config
    is_27b = config.num_hidden_layers == 62
    per_head = config.hidden_size // config.num_attention_heads
    config.query_pre_attn_scalar = per_head if is_27b else config.head_dim
    for layer in model.model.layers:
        layer.self_attn.scaling = config.query_pre_attn_scalar**-0.5
