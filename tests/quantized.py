"""Tiny quantised bases through the path that users take: a saved folder and `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from tests.architectures import BY_NAME
from tests.tiny_folder import word_tokenizer

# By name, what loads it. Sizes of the tiny models are multiples of 32, as 4-bit kernels ask.
BITS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "int8": {"load_in_8bit": True},
}


def write_folder(
    folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """A folder with the random tiny model of `architecture` in `dtype` and a word tokenizer."""
    BY_NAME[architecture].build().to(dtype).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def quantized(folder: Path, bits: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The folder's model with its linear layers in few bits, computing in `dtype`."""
    options = dict(BITS[bits])
    if bits == "nf4":
        options["bnb_4bit_compute_dtype"] = dtype
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**options), dtype=dtype
    )


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that is stored of the quantised layers, by name."""
    parts = {}
    for name, module in model.named_modules():
        if type(module).__module__.startswith("bitsandbytes"):
            parts[name] = module.weight.detach().clone()
            state = getattr(module.weight, "quant_state", None)
            if state is not None:
                parts[f"{name}.absmax"] = state.absmax.clone()
                parts[f"{name}.code"] = state.code.clone()
            else:
                scales = getattr(module.weight, "SCB", None)
                parts[f"{name}.SCB"] = (module.state.SCB if scales is None else scales).clone()
    return parts
