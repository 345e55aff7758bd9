"""The machine, package versions and commit that a result was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("rosa-peft", "torch", "transformers", "peft", "trl", "accelerate")


def describe_environment() -> dict[str, Any]:
    """CPU, cores, device, Python, package versions, commit and date (UTC), as JSON values."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def processor_name() -> str:
    """The CPU's model name, or its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def _commit() -> str | None:
    """The source tree's commit, with `+` if there are local changes; None in a wheel."""
    folder = Path(__file__).resolve().parents[3]
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
