"""Recipes: typed keys, overrides, and errors that name the nearest key."""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path

import pytest
import yaml

from rosa.cli.recipe_parser import RecipeParser, load_recipe, resolve_recipe
from rosa.errors import RosaError
from rosa.methods.registry import method_config
from rosa.train.recipe import Recipe, check_recipe, dump_recipe

MINIMAL = {"model": "rosa-tiny", "data": "rows.json", "output_dir": "out"}


def write(tmp_path: Path, **keys: object) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **keys}))
    return str(path)


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    assert recipe.method == "rosa"
    assert recipe.adapter["r"] == 128
    assert recipe.adapter["alpha"] == 0.1
    assert recipe.adapter["r_low"] == 0.25
    assert recipe.dls is not None
    assert (recipe.dls.k_ratio, recipe.dls.interval, recipe.dls.p_exploit) == (0.5, 40, 0.8)
    assert recipe.learning_rate == 1e-3
    assert recipe.schedule == "cosine"


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, learning_rate=0.5, dls={"interval": 7}, adapter={"r": 3})
    recipe = load_recipe(path, "--learning_rate", "0.25", "--dls.k_ratio", "0.1", "--adapter.r=5")
    assert recipe.learning_rate == 0.25
    assert recipe.dls is not None
    assert (recipe.dls.interval, recipe.dls.k_ratio) == (7, 0.1)
    assert recipe.adapter["r"] == 5


def test_no_layer_selection(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, dls=None)).dls is None
    assert load_recipe(write(tmp_path), "--dls", "null").dls is None


def test_the_method_decides_about_layer_selection_where_the_recipe_does_not(tmp_path: Path) -> None:
    plain = write(tmp_path)
    assert load_recipe(plain).dls is not None
    assert load_recipe(plain, "--method", "lora").dls is None
    assert load_recipe(plain, "--method", "roae_only").dls is None
    asked = load_recipe(plain, "--method", "lora", "--dls.interval", "7").dls
    assert (asked.interval, asked.k_ratio) == (7, 0.5)
    said = write(tmp_path, method="lora", dls={"k_ratio": 0.25})
    assert load_recipe(said).dls.k_ratio == 0.25
    assert load_recipe(said, "--dls", "null").dls is None


@pytest.mark.parametrize("method", ["lora", "rosa", "rosa_lr64"])
def test_a_resolved_recipe_says_what_the_method_decided(tmp_path: Path, method: str) -> None:
    recipe = load_recipe(write(tmp_path, method=method))
    resolved = yaml.safe_load(dump_recipe(recipe))
    assert (resolved["dls"] is None) == (method == "lora")
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(str(again)) == recipe


def test_a_schedule_is_in_the_recipe_only_where_somebody_gave_it(tmp_path: Path) -> None:
    plain = load_recipe(write(tmp_path, method="adalora"))
    assert {"tinit", "tfinal", "total_step"}.isdisjoint(plain.adapter)
    given = load_recipe(write(tmp_path, method="adalora"), "--adapter.tinit", "0")
    assert given.adapter["tinit"] == 0
    assert "tfinal" not in given.adapter


def test_a_null_that_was_asked_for_reaches_the_method(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, method="rosa_lr64", adapter={"modules_to_save": None}))
    assert recipe.adapter["modules_to_save"] is None
    assert method_config("rosa_lr64", recipe.adapter).modules_to_save is None


def test_the_resolved_recipe_gives_the_same_run(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, data=["a.json", "b.json"], adapter={"r": 3}), "--seed=4")
    again = tmp_path / "resolved.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(str(again)) == recipe


def test_an_empty_group_means_its_defaults(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, adapter=None)) == load_recipe(write(tmp_path))


def test_the_recipe_may_stand_after_its_options(tmp_path: Path) -> None:
    path = write(tmp_path)
    parse = RecipeParser("rosa train", {}).parse_args
    assert parse(["--seed", "4", path]) == parse([path, "--seed", "4"])


def test_one_tracker_needs_no_list(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path), "--report_to", "wandb").trackers == ["wandb"]
    assert load_recipe(write(tmp_path, report_to=[])).trackers == []


def test_another_methods_keys(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, method="lora"), "--adapter.lora_alpha", "32")
    assert recipe.adapter["lora_alpha"] == 32
    assert recipe.adapter["r"] == 16  # the study's LoRA
    with pytest.raises(RosaError, match=r"no option --adapter\.r_low"):
        load_recipe(write(tmp_path, method="lora"), "--adapter.r_low", "0.5")


@pytest.mark.parametrize(
    ("keys", "options", "words"),
    [
        ({"learning_rat": 1}, [], ["recipe.yaml", "'learning_rat'", "'learning_rate'"]),
        ({"dls": {"intervall": 1}}, [], ["'dls.intervall'", "'dls.interval'"]),
        ({"adapter": {"r_lo": 1}}, [], ["'adapter.r_lo'", "'adapter.r_low'"]),
        ({}, ["--batchsize", "1"], ["--batchsize", "'batch_size'"]),
        ({"learning_rate": "fast"}, [], ["learning_rate", "float", "fast"]),
        ({}, ["--schedule", "cosin"], ["schedule", "'cosine'", "cosin"]),
        ({}, ["--dls.interval", "x"], ["dls.interval", "int", "x"]),
        ({"dls": {"k_ratio": 2}}, [], ["k_ratio", "2"]),
        ({"method": "loraa"}, [], ["'loraa'", "'lora'"]),
        ({"dls": False}, [], ["`dls`", "null", "False"]),
        ({"adapter": 5}, [], ["`adapter`", "5"]),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, keys: dict, options: list[str], words: list[str]
) -> None:
    with pytest.raises(RosaError) as caught:
        load_recipe(write(tmp_path, **keys), *options)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "is not YAML"), ("- 1", "must hold"), ("model: m", "required")],
)
def test_an_unusable_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RosaError, match=words):
        load_recipe(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=r"no recipe .*absent\.yaml"):
        load_recipe(str(tmp_path / "absent.yaml"))


def test_data_may_be_one_or_many() -> None:
    assert Recipe(**MINIMAL).data_sources == ["rows.json"]
    assert Recipe(**{**MINIMAL, "data": ["a", "b"]}).data_sources == ["a", "b"]


@pytest.mark.parametrize("field", [f for f in fields(Recipe) if "None" not in str(f.type)])
def test_a_key_without_a_value_is_an_error_that_names_it(field: Field) -> None:
    given = {"model": "rosa-tiny", "data": "tiny-sums", "output_dir": "x", field.name: None}
    if field.name == "adapter":  # its keys have defaults of their own
        assert resolve_recipe(given, "r.yaml").adapter["r"] == 128
        return
    with pytest.raises(RosaError, match=rf"r\.yaml: `{field.name}` has no value"):
        resolve_recipe(given, "r.yaml")


def test_no_tracker_is_none_and_a_tilde_is_the_home_folder() -> None:
    given = {"model": "rosa-tiny", "data": "~/rows.json", "output_dir": "~/x", "report_to": "none"}
    recipe = resolve_recipe(given, "r.yaml")
    check_recipe(recipe)
    assert recipe.trackers == []
    assert recipe.data == str(Path.home() / "rows.json")
    assert recipe.output_dir == str(Path.home() / "x")
