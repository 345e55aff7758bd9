"""The table of versions: what is installed for it, how tests are assigned, and its page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.version_matrix import (
    COMBINATIONS,
    LIBRARY,
    PAGE,
    RESULTS,
    SHOWN,
    _architectures,
    _subject,
    install,
    page,
    run_library_tests,
    wanted,
)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml with tomllib")
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_combination_installs_everything_with_the_same_pytorch(combination: str) -> None:
    needs = wanted(combination)
    assert needs[0].startswith("torch==")
    named = {need.partition("==")[0] for need in needs}
    assert set(SHOWN) - named == ({"trl"} if combination == LIBRARY else set())
    exact = [need for need in needs if need.startswith(("transformers", "peft", "trl"))]
    assert all("==" in need for need in exact) == (combination in (LIBRARY, "oldest"))


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads pyproject.toml with tomllib")
def test_the_library_works_with_the_oldest_versions_it_allows(tmp_path: Path) -> None:
    """In a virtual environment of its own, without what the commands need."""
    results = run_library_tests(install(LIBRARY, tmp_path / "environment"))
    assert len(results) > 250
    assert {test: problem for test, problem in results.items() if problem is not None} == {}


def test_a_tests_parameters_name_its_model_type() -> None:
    assert _subject("test_logits[llama-post]") == "llama"
    assert _subject("test_logits[llama-dynamic-post]") == "llama-dynamic"
    assert _subject("test_logits[falcon_h1-pre]") == "falcon_h1"
    assert _subject("test_refused[gpt2]") == "gpt2"
    assert _subject("test_general") is None


def test_a_type_fails_is_absent_or_works() -> None:
    results = {"test_a[llama-post]": None, "test_b[llama]": None, "test_a[phi-post]": "wrong"}
    results |= {"test_a[doge]": "KeyError", "test_c[gpt2]": None, "test_general": "wrong"}
    found = _architectures(results, {"llama", "phi", "gpt2", "bamba"})
    assert found["types"]["llama"] == "works"
    assert found["types"]["phi"] == "FAILS"
    assert found["types"]["doge"] == "absent"
    assert found["types"]["gpt2"] == "refused"
    assert found["types"]["bamba"] == "not run"
    assert found["problems"] == {"phi": {"test_a[phi-post]": "wrong"}}
    assert found["general"] == {"test_general": "wrong"}


def test_the_page_is_that_of_the_results() -> None:
    """Else run python -m tests.support.version_matrix --render."""
    assert PAGE.read_text(encoding="utf-8") == page(json.loads(RESULTS.read_text(encoding="utf-8")))
