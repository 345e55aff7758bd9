"""Matched budgets: no other size is nearer, and a distant one has a note."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from rosa.budget.matching import match_budget, nearest_match, parse_budget
from rosa.budget.parameters import base_parameters, count_parameters, load_model_config
from rosa.cli import main as cli
from rosa.errors import RosaError
from rosa.methods.registry import method_config

SMALL = LlamaConfig(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
)
BY_RANK = ["lora", "dora", "adalora", "bone", "rosa", "rosa_low_0.5", "rosa_lr64", "lora_qk"]


def trainable(method: str, overrides: dict[str, object]) -> int:
    found = count_parameters(SMALL, method, overrides).trainable
    assert found is not None
    return found


@pytest.mark.parametrize("method", [*BY_RANK, "vera", "loha"])
@pytest.mark.parametrize("target", [3_000, 20_000])
def test_no_other_rank_is_nearer(method: str, target: int) -> None:
    match = nearest_match(SMALL, method, target)
    key, rank = next(iter(match.arguments.items()))
    assert match.count.trainable == trainable(method, match.arguments)
    for other in (rank - 1, rank + 1):
        if 1 <= other <= SMALL.hidden_size and not (key == "init_r" and other < 2):
            lower = {"target_r": 1} if key == "init_r" else {}
            distance = abs(trainable(method, {key: other, **lower}) - target)
            assert distance >= abs(match.count.trainable - target)


@pytest.mark.parametrize(("method", "key"), [("c3a", "block_size"), ("boft", "boft_block_size")])
@pytest.mark.parametrize("target", [500, 3_000, 9_000])
def test_no_other_block_that_fits_is_nearer(method: str, key: str, target: int) -> None:
    found = nearest_match(SMALL, method, target)
    blocks = (1, 2, 4, 8, 16, 32, 64)
    every = [count_parameters(SMALL, method, {key: block}).trainable for block in blocks]
    best = min(abs(number - target) for number in every if number is not None)
    assert abs(found.count.trainable - target) == best


@settings(max_examples=4, deadline=None)
@given(rank=st.integers(2, 60), method=st.sampled_from(BY_RANK))
def test_a_methods_own_count_gives_its_own_rank(rank: int, method: str) -> None:
    key = "init_r" if method == "adalora" else "r"
    own = {key: rank, **({"target_r": 1} if method == "adalora" else {})}
    assert match_budget(SMALL, method, trainable(method, own))[key] == rank


def test_what_goes_with_the_rank_keeps_its_ratio() -> None:
    lora = match_budget(SMALL, "lora", 40_000)
    assert lora["lora_alpha"] == round(lora["r"] / 2)  # 8 / 16 in the study
    adalora = match_budget(SMALL, "adalora", 40_000)
    assert adalora["target_r"] == round(adalora["init_r"] * 8 / 12)
    assert match_budget(SMALL, "rosa", 9_000).keys() == {"r"}  # its alpha is no rank's scale
    method_config("adalora", match_budget(SMALL, "adalora", 1), total_steps=10)  # can still fall


def test_given_arguments_stay() -> None:
    target = trainable("rosa", {"r": 9, "r_low": 1.0})
    assert match_budget(SMALL, "rosa", target, {"r_low": 1.0}) == {"r": 9}
    assert match_budget(SMALL, "rosa", target)["r"] > 9


def test_the_papers_lora_next_to_rosa() -> None:
    """LoRA of rank 64 on queries and keys is what the paper calls similar to RoSA."""
    shape = load_model_config("Qwen2.5-7B")
    target = count_parameters(shape, "rosa").trainable
    assert match_budget(shape, "lora_qk", target)["r"] in (63, 64)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("ln_tuning", "no size to choose"),
        ("norms_only", "no size to choose"),
        ("ia3", "no size to choose"),
        ("vblora", "not applicable: .*divisible"),
    ],
)
def test_a_method_without_a_size_raises(method: str, words: str) -> None:
    with pytest.raises(RosaError, match=words):
        match_budget(SMALL, method, 10_000)
    assert nearest_match(SMALL, method, 10_000).arguments == {}


@pytest.mark.parametrize(
    ("method", "target", "words"),
    [
        ("lora", 100, r"r 1 comes nearest and is \d+% above"),
        ("vera", 100_000, r"r 64 comes nearest and is \d+% below"),
        ("c3a", 90_000, r"block_size 1 comes nearest and is \d+% below"),
        ("randlora", 100, r"not linear"),
    ],
)
def test_a_distant_match_has_a_note(method: str, target: int, words: str) -> None:
    assert re.search(words, nearest_match(SMALL, method, target).note)


def test_a_near_match_has_no_note() -> None:
    assert nearest_match(SMALL, "lora", 40_000).note == ""


def test_a_target_rank_not_below_the_initial_rank_raises() -> None:
    with pytest.raises(RosaError, match="init_r 4 must be above target_r 8"):
        method_config("adalora", {"init_r": 4}, total_steps=10)


@pytest.mark.parametrize("text", ["20000000", "20,000,000", "20_000_000"])
def test_a_budget_may_be_a_number(text: str) -> None:
    assert parse_budget(SMALL, text) == 20_000_000


def test_a_share_is_pefts_percentage() -> None:
    shape = load_model_config("Qwen2.5-7B")
    assert parse_budget(shape, "0.260984 %") == pytest.approx(19_927_040, rel=1e-4)
    assert parse_budget(SMALL, "50%") == base_parameters(SMALL)


def test_a_budget_may_be_another_method() -> None:
    assert parse_budget(SMALL, "LN Tuning") == trainable("ln_tuning", {})


@pytest.mark.parametrize("text", ["0", "-5", "100%", "0%", "2.5", "1e6", "5 %x", "lor", ""])
def test_an_invalid_budget_raises(text: str) -> None:
    with pytest.raises(RosaError):
        parse_budget(SMALL, text)


# The command


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL.to_dict(), "model_type": "llama"}))
    return str(tmp_path)


def test_json_of_matched_budgets(capsys, folder) -> None:
    argv = ["params", folder, "--match_budget", "rosa", "--methods", "lora,ln_tuning", "--json"]
    assert cli.main(argv) == 0
    lora, norms = json.loads(capsys.readouterr().out)
    assert lora["target"] == trainable("rosa", {})
    assert lora["trainable"] == trainable("lora", lora["setting"])
    assert lora["difference"] == pytest.approx(lora["trainable"] / lora["target"] - 1)
    assert norms["setting"] == {}
    assert norms["note"] == "it has no size to choose"


def test_table_of_matched_budgets(capsys, folder) -> None:
    argv = ["params", folder, "--match_budget", "1000", "--methods", "lora,adalora", "--markdown"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "Nearest to 1,000 trainable parameters" in out
    assert "r 1, lora" in out
    assert "counted at init" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--match_budget", "1000", "--r", "4"], "--match_budget chooses the rank; drop"),
        (["--json", "--markdown"], "exclude each other"),
        (["--table"], "drop the model"),
    ],
)
def test_options_that_exclude_each_other(capsys, folder, argv, words) -> None:
    assert cli.main(["params", folder, *argv]) == 2
    assert words in capsys.readouterr().err
