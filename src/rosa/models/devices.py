"""The device and the dtype that a model is loaded with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from rosa.errors import RosaError

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "float32": "float32"}  # PyTorch's names


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
        raise RosaError(f"unknown device {device!r}; choose from auto, cpu, cuda, mps") from None
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise RosaError(f"device {device!r} is not available: PyTorch finds no CUDA device")
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it (`computes_in_bf16`), else float32.

    Raises:
        RosaError: the name is unknown.
    """
    import torch

    if dtype == "auto":
        dtype = auto_precision(device)
    if dtype not in DTYPES:
        raise RosaError(f"unknown dtype {dtype!r}; choose from {', '.join(('auto', *DTYPES))}")
    return getattr(torch, DTYPES[dtype])


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


def auto_precision(device: torch.device) -> Literal["bf16", "float32"]:
    """What `precision: auto` is on a device, as a recipe's `precision`."""
    return "bf16" if computes_in_bf16(device) else "float32"


def legacy_auto_precision() -> str:
    """What it was in runs older than bfloat16 on CPUs: bf16 on CUDA, also by emulation."""
    import torch

    return "bf16" if pick_device().type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
