"""Tests that run over every variant of the modulation: which do, and with which models at once.

A test asks for it with `@each_variant`, or with `@each_variant_nightly` where it is long and a
shorter one looks at the same. On a CPU `autograd` is the default. With the others,
`make test` takes the models of `AT_ONCE`; `make nightly` takes all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest

VARIANTS = ("reference", "autograd", "triton")
ON_A_CPU = "autograd"
# Of tests/architectures.py: pairs as halves, pairs 2i and 2i + 1 in a part of each head, a norm
# before the rotation, one module for all of q, k and v, and one by head in a part of each head.
AT_ONCE = ("llama", "glm", "qwen3", "phi3", "gpt_neox")
# Of tests/tiny_models.py: grouped queries, as many keys as queries.
AT_ONCE += ("llama-gqa", "llama-mha")
_MODEL = ("case", "name", "model", "model_name")  # what tests call the parameter

_Test = TypeVar("_Test", bound=Callable[..., Any])


def each_variant(test: _Test) -> _Test:
    """Runs it with each variant, by the fixture `ops_variant`, which it may also ask for."""
    over = pytest.mark.parametrize("ops_variant", VARIANTS, indirect=True)
    return pytest.mark.usefixtures("ops_variant")(over(test))


def each_variant_nightly(test: _Test) -> _Test:
    """The same, but in `make test` only with the default of a CPU."""
    slow = pytest.mark.slow
    variants = (v if v == ON_A_CPU else pytest.param(v, marks=slow) for v in VARIANTS)
    over = pytest.mark.parametrize("ops_variant", list(variants), indirect=True)
    return pytest.mark.usefixtures("ops_variant")(over(test))


def waits(parameters: Mapping[str, object]) -> bool:
    """Whether a test with these parameters is left to the nightly run for its model."""
    if parameters.get("ops_variant", ON_A_CPU) == ON_A_CPU:
        return False
    models = (parameters[key] for key in _MODEL if key in parameters)
    return any(getattr(model, "name", model) not in AT_ONCE for model in models)
