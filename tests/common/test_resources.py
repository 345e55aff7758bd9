"""Peak host memory and the GPU's energy: right figures, and None where they cannot be measured."""

from __future__ import annotations

import sys
import time
import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rosa.common import resources


@pytest.mark.parametrize("kernel", [True, False])
def test_host_peak_sees_what_is_gone_again_and_forgets_what_was_before(
    kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernel:
        monkeypatch.setattr(resources, "_reset_kernel_peak", lambda: False)
    before = bytearray(b"x" * (200 << 20))
    del before
    peak = resources.PeakHostMemory()
    assert kernel or peak.source == "samples"
    peak.start()
    start = peak.read()
    inside = bytearray(b"x" * (64 << 20))
    time.sleep(0.2)
    del inside
    assert 60 << 20 < peak.read() - start < 180 << 20
    peak.stop()


def fake_nvml(monkeypatch: pytest.MonkeyPatch, millijoules: list[int]) -> None:
    module: Any = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid

    def energy(handle: str) -> int:
        assert handle == "GPU-1234"
        if not millijoules:
            raise module.NVMLError
        return millijoules.pop(0)

    module.nvmlDeviceGetTotalEnergyConsumption = energy
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234")
    )


def test_energy_is_nvmls_counter_in_joules_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert resources.read_energy(torch.device("cpu")) is None
    fake_nvml(monkeypatch, [2_500])
    assert resources.read_energy(gpu) == 2.5
    assert resources.read_energy(gpu) is None  # a GPU that does not count
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert resources.read_energy(gpu) is None
