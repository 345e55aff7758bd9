"""Peak memory of host and GPU, and the GPU's energy, over a stretch of work."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.02
_PROC = Path("/proc/self")


class PeakHostMemory:
    """Peak resident memory of this process since `start()`, libraries and base model included.

    The Linux kernel keeps the peak, and resets it at `start()`. On other systems a thread samples
    the memory every 20 ms and may miss a shorter peak. `source` is "kernel" or "samples".
    """

    def __init__(self) -> None:
        self.source = "kernel" if _reset_kernel_peak() else "samples"
        self._peak = 0
        self._stop = threading.Event()

    def start(self) -> PeakHostMemory:
        """Reset the peak to the present memory."""
        if self.source == "kernel":
            _reset_kernel_peak()
        else:
            self._sample()
            threading.Thread(target=self._keep_sampling, daemon=True).start()
        return self

    def read(self) -> int:
        """The peak so far, in bytes."""
        if self.source == "kernel":
            return kernel_peak()
        self._sample()
        return self._peak

    def stop(self) -> None:
        """End the sampling thread, if there is one."""
        self._stop.set()

    def _keep_sampling(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        import psutil

        self._peak = max(self._peak, psutil.Process().memory_info().rss)


def _reset_kernel_peak() -> bool:
    """Reset the kernel's peak to the present memory; False where that is not possible."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
        return kernel_peak() > 0
    except OSError:
        return False


def kernel_peak() -> int:
    """Peak resident bytes since the last reset, on Linux; `getrusage` counts the parent's too."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROC / "status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_peak_device_memory(device: Any) -> None:
    """Reset a CUDA device's peak; no effect on other devices."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_memory(device: Any) -> int | None:
    """Peak bytes of tensors on a CUDA device since the reset; None for other devices."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def read_energy(device: Any) -> float | None:
    """Joules that a CUDA device has used since its driver was loaded, by all processes.

    None for other devices, without the package `nvidia-ml-py`, and for GPUs without a counter.
    """
    if device.type != "cuda":
        return None
    import torch

    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
    return None
