"""The study's methods: every file loads, overrides reach PEFT, mistakes are named."""

from __future__ import annotations

from importlib import resources

import peft
import pytest

from rosa.dls import DlsConfig
from rosa.errors import RosaError
from rosa.methods.registry import GROUPS, load_method, method_config, method_names
from rosa.train.recipe import Recipe

NINE = {"lora", "dora", "adalora", "boft", "vera", "c3a", "bone", "ln_tuning", "rosa"}
VARIANTS = {
    *("rosa_lr128", "rosa_lr64", "roae_only", "rosa_low_0.5"),
    *("lora_qk", "norms_only", "full_layers", "rosa_relative", "dypam"),
}
WITH_DLS = {"rosa", "rosa_low_0.5", "rosa_lr128", "rosa_lr64", "norms_only"}


def test_the_nine_methods_of_table_1_are_there_with_rosa_last_and_variants_after_them():
    assert set(method_names()) == NINE
    assert method_names()[-1] == "rosa"
    assert set(method_names(["variant"])) == VARIANTS
    assert method_names(GROUPS) == method_names() + method_names(["variant"])


@pytest.mark.parametrize("name", sorted(NINE | VARIANTS))
def test_every_file_is_named_after_its_method_and_gives_a_peft_config(name):
    method = load_method(name)
    assert method.name == name
    config = method_config(name, total_steps=10)
    assert isinstance(config, peft.PeftConfig)
    assert config.task_type == "CAUSAL_LM"
    for key, value in method.kwargs.items():
        actual = getattr(config, key)
        assert actual == (set(value) if isinstance(actual, set) else value)


def test_files_and_names_agree():
    files = (resources.files("rosa.methods")).iterdir()
    assert {f.name for f in files if f.name.endswith(".yaml")} == {
        f"{n}.yaml" for n in NINE | VARIANTS
    }


@pytest.mark.parametrize("name", sorted(NINE | VARIANTS))
def test_a_recipe_that_does_not_mention_dls_has_it_only_where_it_is_part_of_the_method(name):
    def recipe(**keys):
        return Recipe("rosa-tiny", "tiny-sums", "out", method=name, **keys)

    assert recipe().dls == (DlsConfig() if name in WITH_DLS else None)
    assert recipe(dls=None).dls is None
    assert recipe(dls=DlsConfig(interval=7)).dls == DlsConfig(interval=7)


def test_a_variant_is_its_base_but_for_what_it_says():
    rosa, half = load_method("rosa"), load_method("rosa_low_0.5")
    assert half.kwargs == {**rosa.kwargs, "r_low": 0.5}
    assert (half.peft_config, half.dls) == (rosa.peft_config, True)
    assert half.paper_percent == {}
    assert load_method("roae_only").kwargs == rosa.kwargs


@pytest.mark.parametrize("title", ["RoSA-RoAEonly", "rosa-lr128", "RoSA-RoAE0.5", "AdaLoRA"])
def test_a_title_is_a_name_too_and_a_recipe_keeps_the_name(title):
    assert load_method(title).title.lower() == title.lower()
    assert Recipe("m", "d", "o", method=title).method == load_method(title).name


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
    assert method_config("adalora", {"total_step": 99}, total_steps=123).total_step == 99
    assert not hasattr(method_config("lora", total_steps=123), "total_step")


@pytest.mark.parametrize(
    ("total", "tinit", "tfinal"),
    [(3780, 472, 1890), (200, 25, 100), (8, 1, 4), (2, 0, 1), (1, 0, 0)],
)
def test_adalora_warms_up_and_ends_with_fixed_ranks_by_default(total, tinit, tfinal):
    config = method_config("adalora", total_steps=total)
    assert (config.tinit, config.tfinal, config.total_step) == (tinit, tfinal, total)
    given = method_config("adalora", {"tinit": 0, "tfinal": 0}, total_steps=total)
    assert (given.tinit, given.tfinal) == (0, 0)


def test_a_schedule_without_room_for_cutting_ranks_raises():
    with pytest.raises(RosaError, match="don't allow for a budgeting phase"):
        method_config("adalora", {"tinit": 90}, total_steps=100)


def test_adalora_without_a_number_of_steps_raises_one_sentence():
    with pytest.raises(RosaError, match=r"'adalora' cannot be configured: .*total_step"):
        method_config("adalora")


def test_unknown_method_names_the_nearest():
    with pytest.raises(RosaError, match=r"no method 'loar' \(did you mean 'lora'\?\)"):
        load_method("loar")


def test_unknown_argument_names_the_nearest():
    with pytest.raises(RosaError, match=r"'lora' has no argument 'lora_alfa'.*'lora_alpha'"):
        method_config("lora", {"lora_alfa": 3})
