"""RosaConfig: values, sentences, and the round trip through adapter_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from rosa import RosaConfig
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError


def test_the_defaults_are_the_papers() -> None:
    config = RosaConfig()
    assert (config.r, config.alpha, config.r_low, config.rope_stage) == (128, 0.1, 0.25, "post")
    assert config.train_norms
    assert config.init_weights
    assert config.dls is None
    assert config.peft_type == "ROSA"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"r": 0}, "r must be a whole number of at least 1, not 0"),
        ({"r": 8.0}, "r must be a whole number"),
        ({"r": True}, "r must be a whole number"),
        ({"alpha": float("nan")}, "alpha must be a finite number, not nan"),
        ({"alpha": "0.1"}, "alpha must be a finite number, not '0.1'"),
        ({"r_low": 0.0}, "r_low must be above 0 and at most 1, not 0.0"),
        ({"r_low": 1.5}, "r_low must be above 0 and at most 1, not 1.5"),
        ({"rope_stage": "after"}, "rope_stage must be one of post, pre, not 'after'"),
        ({"norm_parametrization": "delta"}, "norm_parametrization must be one of absolute, rel"),
        ({"pairs": "lowest"}, r"pairs must be one of low, .*'lowest' \(did you mean 'low'"),
        ({"pairs_seed": -1}, "pairs_seed must be a whole number from 0"),
        ({"bound": 0.0}, "bound must be above 0, or None"),
        ({"train_norms": "yes"}, "train_norms must be True or False, not 'yes'"),
        ({"init_weights": 1}, "init_weights must be True or False, not 1"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of names, not 'lm_head'"),
        ({"layers_to_transform": []}, "layers_to_transform must hold layer indices"),
        ({"layers_to_transform": [-1]}, "layers_to_transform must hold layer indices"),
        ({"layers_to_transform": [0], "target_modules": ".*attn"}, "regex in target_modules"),
        ({"projection": "lowrank"}, r"one of low_rank, full.*not 'lowrank' \(did you mean"),
        ({"projection": None}, "projection must be one of low_rank, full.*not None"),
        ({"dls": True}, "dls must be a rosa.DlsConfig or None, not True"),
        ({"dls": {"k_ratio": 2.0}}, "k_ratio"),
    ],
)
def test_a_bad_value_gets_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RosaError, match=sentence) as caught:
        RosaConfig(**values)
    assert "\n" not in str(caught.value)


def test_round_trip_through_the_file(tmp_path: Path) -> None:
    dls = DlsConfig(k_ratio=0.25, interval=7, p_exploit=0.6, warmup=12, seed=3)
    config = RosaConfig(
        r=4, alpha=0.3, r_low=0.5, rope_stage="pre", target_modules=["self_attn"],
        layers_to_transform=range(1, 3), exclude_modules=["x"], modules_to_save=["lm_head"],
        train_norms=False, init_weights=False, dls=dls, task_type="CAUSAL_LM",
    )  # fmt: skip
    config.save_pretrained(str(tmp_path))
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "ROSA"
    assert saved["dls"] == {
        "k_ratio": 0.25, "interval": 7, "p_exploit": 0.6, "warmup": 12, "seed": 3,
        "layers": None, "policy": "scores", "score": "gradient",
    }  # fmt: skip
    assert saved["layers_to_transform"] == [1, 2]
    for loaded in (PeftConfig.from_pretrained(tmp_path), RosaConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, RosaConfig)
        assert loaded == config
        assert isinstance(loaded.dls, DlsConfig)


def test_fields_of_a_later_version_are_ignored_with_a_warning(tmp_path: Path) -> None:
    RosaConfig(r=4, dls=DlsConfig(interval=7)).save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    saved = json.loads(file.read_text())
    saved["depth"] = 2
    saved["dls"]["temperature"] = 1.0
    file.write_text(json.dumps(saved))
    with (
        pytest.warns(UserWarning, match="'depth'"),
        pytest.warns(UserWarning, match="unknown fields of dls: temperature"),
    ):
        loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, RosaConfig)
    assert (loaded.r, loaded.dls) == (4, DlsConfig(interval=7))
