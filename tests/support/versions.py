"""Tests of what only newer versions of PEFT or Transformers can do."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def needs(package: str, at_least: str) -> pytest.MarkDecorator:
    """Skips a test with an older version of the package."""
    is_older = Version(version(package)) < Version(at_least)
    return pytest.mark.skipif(is_older, reason=f"needs {package} {at_least} or later")


saves_one_adapter_per_file = needs("peft", "0.21")  # before, all adapters' tensors go into each
reports_unexpected_keys = needs("peft", "0.21")
transformers_loads_norms = needs("transformers", "5.18")
