"""What the machine tells about a stretch of work: peak memory of host and device, energy."""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.02
_PROC = Path("/proc/self")


class HostPeak:
    """Peak resident memory of this process since `start()`, libraries and base model included.

    On Linux the kernel keeps the figure and is told to start again, so that what the process did
    before does not count. Elsewhere a thread reads the memory every 20 ms and may miss a shorter
    peak. `source` says which: "kernel" or "samples".
    """

    def __init__(self) -> None:
        self.source = "kernel" if _reset_kernel_peak() else "samples"
        self._peak = 0
        self._stop = threading.Event()

    def start(self) -> HostPeak:
        """Forgets what was before."""
        if self.source == "kernel":
            _reset_kernel_peak()
            return self
        self._sample()
        threading.Thread(target=self._keep_sampling, daemon=True).start()
        return self

    def read(self) -> int:
        """Bytes, up to now."""
        if self.source == "kernel":
            return _kernel_peak()
        self._sample()
        return self._peak

    def stop(self) -> None:
        """Ends the thread, where there is one."""
        self._stop.set()

    def _keep_sampling(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        import psutil

        self._peak = max(self._peak, psutil.Process().memory_info().rss)


def _reset_kernel_peak() -> bool:
    """Sets the kernel's peak to the present memory; False where that cannot be done."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
        return _kernel_peak() > 0
    except OSError:
        return False


def _kernel_peak() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROC / "status").read_text("utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def reset_device_peak(device: Any) -> None:
    """Forgets the peak of a CUDA device; nothing to do for another."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_peak(device: Any) -> int | None:
    """Bytes of tensors on a CUDA device at their peak since the reset; None for another."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def device_name(device: Any) -> str:
    """The GPU's or the processor's name."""
    import torch

    from rosa.common.environment import processor

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def energy_counter(device: Any) -> float | None:
    """Joules that a CUDA device has used since its driver started, whoever used it.

    None for another device, without NVML's Python package (`nvidia-ml-py`), and for a GPU that
    does not count.
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
