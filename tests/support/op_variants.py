"""Tests that run over every variant of the modulation: which do, and with which models by default.

A test asks for it with `@each_variant`, or with `@each_variant_nightly` where a shorter one checks
the same. `make test` runs them with the default variant, and `@each_variant` with the others on the
models of `DEFAULT_MODELS`; `make nightly` runs all. `tests/ops/test_variants.py` compares the
variants on every layout of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest

VARIANTS = ("reference", "autograd", "triton")
DEFAULT = "autograd"
# Of tests/support/architectures.py: two modules for queries and keys, and a fused one; and of
# tests/support/tiny_models.py one.
DEFAULT_MODELS = ("llama", "phi3", "llama-gqa")
_MODEL = ("case", "name", "model", "model_name")  # what tests call the parameter

_Test = TypeVar("_Test", bound=Callable[..., Any])


def each_variant(test: _Test) -> _Test:
    """Runs it with each variant, by the fixture `ops_variant`, which it may also ask for."""
    over = pytest.mark.parametrize("ops_variant", VARIANTS, indirect=True)
    return pytest.mark.usefixtures("ops_variant")(over(test))


def each_variant_nightly(test: _Test) -> _Test:
    """As `each_variant`, but `make test` runs only the default variant."""
    slow = pytest.mark.slow
    variants = (v if v == DEFAULT else pytest.param(v, marks=slow) for v in VARIANTS)
    over = pytest.mark.parametrize("ops_variant", list(variants), indirect=True)
    return pytest.mark.usefixtures("ops_variant")(over(test))


def is_nightly(parameters: Mapping[str, object]) -> bool:
    """Whether a test with these parameters is left to the nightly run for its model."""
    if parameters.get("ops_variant", DEFAULT) == DEFAULT:
        return False
    models = (parameters[key] for key in _MODEL if key in parameters)
    return any(getattr(model, "name", model) not in DEFAULT_MODELS for model in models)
