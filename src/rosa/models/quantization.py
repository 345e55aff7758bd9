"""Frozen base models in 4 or 8 bits with bitsandbytes, for adapters on top (QLoRA)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

from rosa.errors import RosaError

if TYPE_CHECKING:
    import torch

Quantization = Literal["nf4", "int8"]
NAMES = get_args(Quantization)


def check_quantization(name: str | None) -> None:
    """Raises RosaError for an unknown name, and if bitsandbytes is not installed."""
    if name is None:
        return
    if name not in NAMES:
        raise RosaError(f"unknown quantization {name!r}; choose from {', '.join(NAMES)}")
    if find_spec("bitsandbytes") is None:
        raise RosaError(
            f"quantization {name} needs bitsandbytes, which is not installed; "
            "`pip install bitsandbytes`, or leave quantization out"
        )


def loading_options(name: str | None, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`; none without quantization.

    `nf4` is QLoRA's: 4-bit NormalFloat with double quantization, computing in `dtype`.
    """
    if name is None:
        return {}
    from transformers import BitsAndBytesConfig

    check_quantization(name)
    if name == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_gradients(model: Any) -> None:
    """Keeps gradients flowing through 4-bit layers on the CPU after an evaluation.

    On CPUs with bfloat16 instructions, bitsandbytes repacks the weights at the first evaluation,
    and from then on no gradient passes, without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
