"""Fixtures that every test module may use."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

# Before PyTorch is imported, here and in what tests start: pytest-xdist is the parallelism, and
# threads of several workers only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What a run keeps for the next one is not for those of the user.
os.environ.setdefault("ROSA_CACHE", tempfile.mkdtemp(prefix="rosa-tests-"))
# Kernels run in Triton's interpreter; before Triton is imported too.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from tests.support.op_variants import is_nightly

COLLECTED = pytest.StashKey[list[pytest.Item]]()  # all tests, the slow ones too


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real benchmark data, $ROSA_TEST_DATA or `../shared/data`."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ROSA_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no benchmark data at {folder}; set ROSA_TEST_DATA to its folder")
    return folder


@pytest.fixture(autouse=True)
def float32_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`precision: auto` is float32 here, on machines that compute in bfloat16 too."""
    monkeypatch.setattr("rosa.models.devices.computes_in_bf16", lambda device: False)


@pytest.fixture
def ops_variant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The variant that a test runs with, and threads and processes that it starts.

    Triton is there on Linux.
    """
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setenv("ROSA_OPS", request.param)
    monkeypatch.setattr("rosa.ops.variants._from_environment", request.param, raising=False)
    return request.param


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks as slow the models that only the nightly run tries with every variant."""
    config.stash[COLLECTED] = list(items)
    for item in items:
        if is_nightly(item.callspec.params if hasattr(item, "callspec") else {}):
            item.add_marker(pytest.mark.slow)
