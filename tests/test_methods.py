"""The study's methods: every file loads, overrides reach PEFT, mistakes are named."""

from __future__ import annotations

from importlib import resources

import peft
import pytest

from rosa.errors import RosaError
from rosa.study.methods import load_method, method_config, method_names

NINE = {"lora", "dora", "adalora", "boft", "vera", "c3a", "bone", "ln_tuning", "rosa"}


def test_the_nine_methods_of_table_1_are_there_with_rosa_last():
    assert set(method_names()) == NINE
    assert method_names()[-1] == "rosa"


@pytest.mark.parametrize("name", sorted(NINE))
def test_every_file_is_named_after_its_method_and_gives_a_peft_config(name):
    method = load_method(name)
    assert method.name == name
    config = method_config(name, total_steps=10)
    assert isinstance(config, peft.PeftConfig)
    assert config.task_type == "CAUSAL_LM"
    for key, value in method.kwargs.items():
        actual = getattr(config, key)
        assert (sorted(actual) if isinstance(actual, set) else actual) == value


def test_files_and_names_agree():
    files = (resources.files("rosa.study") / "methods").iterdir()
    assert {f.name for f in files if f.name.endswith(".yaml")} == {f"{n}.yaml" for n in NINE}


@pytest.mark.parametrize("spelling", ["LN Tuning", "ln-tuning", "LN_TUNING"])
def test_names_are_forgiving_about_case_and_separators(spelling):
    assert load_method(spelling).name == "ln_tuning"


def test_overrides_replace_the_files_values_and_leave_the_others():
    config = method_config("dora", {"r": 4})
    assert config.r == 4
    assert config.use_dora


def test_dora_is_lora_with_magnitudes():
    assert not method_config("lora").use_dora
    assert method_config("dora").use_dora


def test_total_steps_reaches_adalora_and_an_override_wins():
    assert method_config("adalora", total_steps=123).total_step == 123
    assert method_config("adalora", {"total_step": 7}, total_steps=123).total_step == 7
    assert not hasattr(method_config("lora", total_steps=123), "total_step")


def test_adalora_without_a_number_of_steps_is_refused_in_one_sentence():
    with pytest.raises(RosaError, match=r"'adalora' can't be set up: .*total_step"):
        method_config("adalora")


def test_unknown_method_names_the_nearest():
    with pytest.raises(RosaError, match=r"no method 'loar' \(did you mean 'lora'\?\)"):
        load_method("loar")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(RosaError, match=r"'lora' has no argument 'lora_alfa'.*'lora_alpha'"):
        method_config("lora", {"lora_alfa": 3})
