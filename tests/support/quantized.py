"""Tiny quantized bases through the path that users take: a saved folder and `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from rosa import RosaConfig
from tests.support.architectures import BY_NAME
from tests.support.tiny_folder import word_tokenizer

BITSANDBYTES = ("nf4", "int8")
# torchao is no part of `make test`: once installed, each import of Transformers loads it.
QUANTIZERS = (*BITSANDBYTES, pytest.param("torchao-int8", marks=pytest.mark.slow))
SMALL: dict[str, Any] = {"r": 6, "alpha": 0.5, "r_low": 0.5}
TOKENS = torch.randint(3, 70, (2, 12), generator=torch.Generator().manual_seed(0))
each_quantizer = pytest.mark.parametrize("bits", QUANTIZERS)
each_of_bitsandbytes = pytest.mark.parametrize("bits", BITSANDBYTES)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@pytest.fixture(autouse=True)
def portable_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on every machine: where a CPU computes in bfloat16, 4-bit layers are otherwise repacked at
    their first evaluation, and pass no gradients from there on."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def write_folder(
    folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32
) -> Path:
    """A folder with the random tiny model of `architecture` in `dtype` and a word tokenizer."""
    BY_NAME[architecture].build().to(dtype).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def written_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("llama"))


def quantized(folder: Path, quantizer: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The folder's model with its linear layers in few bits, computing in `dtype`."""
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=_config(quantizer, dtype), dtype=dtype
    )


def _config(quantizer: str, dtype: torch.dtype) -> Any:
    """Sizes of the tiny models are multiples of 32, as kernels for 4 bits ask."""
    if quantizer == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    if quantizer == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def stored(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is stored of the quantized layers' weights, by name: numbers and scales."""
    parts = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ == "Linear4bit":
            state = weight.quant_state
            parts[name], parts[f"{name}.scale"] = weight.detach().clone(), state.absmax.clone()
        elif type(module).__name__ == "Linear8bitLt":
            scales = getattr(weight, "SCB", None)
            scales = module.state.SCB if scales is None else scales
            parts[name], parts[f"{name}.scale"] = weight.detach().clone(), scales.clone()
        elif type(weight.data if weight is not None else None).__name__ == "Int8Tensor":
            parts[name], parts[f"{name}.scale"] = weight.qdata.clone(), weight.scale.clone()
    return parts


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(input_ids=TOKENS).logits


def adapted(
    folder: Path, bits: str, dtype: torch.dtype = torch.float32, **config: Any
) -> PeftModel:
    return get_peft_model(quantized(folder, bits, dtype), RosaConfig(**{**SMALL, **config}))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
