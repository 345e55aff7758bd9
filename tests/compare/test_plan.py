"""A grid becomes runs: how many, in which order, with which recipes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rosa.cli.compare import GridParser
from rosa.cli.recipe_parser import resolve_recipe
from rosa.compare.grid import (
    STUDY_OPTIONS,
    Grid,
    TrainingSet,
    parse_method_entry,
)
from rosa.compare.job import folder_name
from rosa.compare.plan import plan
from rosa.compare.tuning import LearningRateSearch
from rosa.errors import RosaError
from tests.support.compare import make_grid


def recipes(grid: Grid) -> dict[str, Any]:
    return {job.group.method: job.recipe for job in plan(grid, resolve_recipe)}


def test_every_combination_is_one_run() -> None:
    sets = {name: TrainingSet("tiny-sums", ["toy"]) for name in "ab"}
    grid = make_grid(models=["rosa-tiny", "other"], training_sets=sets, seeds=[1, 2, 3])
    jobs = plan(grid, resolve_recipe)
    assert len({job.id for job in jobs}) == len(jobs) == 2 * 2 * 2 * 3


def test_one_seed_of_every_method_comes_before_the_second_of_any() -> None:
    jobs = plan(make_grid(), resolve_recipe)
    assert [job.seed for job in jobs] == [1, 1, 2, 2]


def test_tuning_runs_come_first_and_are_not_scored() -> None:
    grid = make_grid(tune=LearningRateSearch([1e-3, 1e-2], [7], {"max_steps": 5}))
    jobs = plan(grid, resolve_recipe)
    tuning, runs = jobs[:4], jobs[4:]
    assert all(job.is_tuning and job.recipe.max_steps == 5 and job.seed == 7 for job in tuning)
    assert [job.recipe.learning_rate for job in tuning] == [1e-3, 1e-2] * 2
    assert all(job.is_tuned and job.recipe.max_steps is None for job in runs)


def test_keys_of_tuning_runs_are_read_like_any_recipe() -> None:
    tune = LearningRateSearch([1e-3], [7], {"adapter": {"r": 2}, "dls": {"interval": 1}})
    jobs = plan(make_grid(tune=tune, methods=["lora", "rosa"]), resolve_recipe)
    lora, rosa = (job.recipe for job in jobs if job.is_tuning)
    assert (lora.adapter["r"], lora.dls) == (2, None)
    assert (rosa.adapter["r"], rosa.dls.interval) == (2, 1)


def test_a_shared_dls_is_for_the_methods_that_select_layers() -> None:
    own = {"name": "lora-dls", "method": "lora", "dls": {"k_ratio": 0.25}}
    off = {"name": "rosa-off", "method": "rosa", "dls": None}
    grid = make_grid(methods=["lora", "rosa", own, off], recipe={"dls": {"interval": 7}})
    by_method = recipes(grid)
    assert by_method["lora"].dls is None
    assert by_method["rosa"].dls.interval == 7
    assert (by_method["lora-dls"].dls.interval, by_method["lora-dls"].dls.k_ratio) == (7, 0.25)
    assert by_method["rosa-off"].dls is None


def test_the_nearer_keys_win() -> None:
    sets = {"toy": TrainingSet("tiny-sums", ["toy"], {"epochs": 2, "batch_size": 3})}
    entry = {"name": "mine", "method": "lora", "batch_size": 5}
    recipe = recipes(make_grid(methods=[entry], training_sets=sets, recipe={"epochs": 9}))["mine"]
    assert (recipe.epochs, recipe.batch_size) == (2, 5)


def test_a_budget_is_met_by_the_nearest_rank() -> None:
    small = {"name": "rosa-small", "method": "rosa", "adapter": {"r": 32}}  # 41,472 parameters
    like = {"name": "lora-like", "method": "lora", "budget": "rosa-small"}
    number = {"name": "lora-100k", "method": "lora", "budget": 100_000}
    by_method = recipes(make_grid(methods=[small, like, number]))
    assert by_method["lora-like"].adapter["r"] == 3  # 43,776; rank 2 gives 29,184
    assert by_method["lora-100k"].adapter["r"] == 7  # 14,592 a rank


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": [{"name": "x", "method": "lora", "budget": "nobody"}, "rosa"]},
         ["the budget of 'x'", "nobody", "rosa"]),
        ({"methods": [{"name": "x", "method": "ln_tuning", "budget": 500}]},
         ["the budget of 'x'", "no size"]),
        ({"methods": []}, ["methods is empty"]),
        ({"methods": ["lora", "lora"]}, ["'lora' is listed twice"]),
        ({"methods": ["lora", {"name": "x", "method": "rosa", "title": "LoRA"}]},
         ["titles", "'LoRA' is listed twice"]),
        ({"methods": [{"adapter": {}}]}, ["`method` or `name`"]),
        ({"methods": [{"name": "A b", "method": "lora"}, {"name": "a/a-B", "method": "lora"}]},
         ["share the folder"]),
        ({"methods": ["lorra"]}, ["lorra", "lora"]),
        ({"methods": [{"method": "lora", "adapter": {"rank": 4}}]}, ["the method 'lora'", "rank"]),
        ({"recipe": {"learning_ratee": 1}}, ["learning_rate"]),
        ({"tune": LearningRateSearch([])}, ["tune.learning_rates is empty"]),
        ({"tune": LearningRateSearch([1e-3, 0.001])},
         ["tune.learning_rates: '0.001' is listed twice"]),
        ({"tune": LearningRateSearch([1e-3], [1, 1])}, ["tune.seeds: '1' is listed twice"]),
        ({"tune": LearningRateSearch([1e-3], [1], {"stepps": 3})}, ["tune.recipe", "stepps"]),
        ({"tune": LearningRateSearch([1e-3], [1], {"max_steps": "ten"})},
         ["tune.recipe", "max_steps", "ten"]),
        ({"tune": LearningRateSearch([-1e-3])}, ["learning_rate must be", "-0.001", "'lora'"]),
        ({"tune": LearningRateSearch([1e-3]), "recipe": {"validation": 0}}, ["validation", "tune"]),
        ({"tune": LearningRateSearch([1e-3]), "methods": [{"name": "x", "method": "lora",
          "learning_rate": 0.1}]}, ["learning_rate", "tune"]),
        ({"methods": [{"method": "lora", "adapter": {"r": "four"}}]}, ["'lora'", "adapter.r"]),
        ({"recipe": {"max_steps": 0}}, ["max_steps must be above 0"]),
        ({"seeds": [-1]}, ["seed must be from 0"]),
        ({"recipe": {"seed": 5}}, ["recipe: `seed`", "seeds"]),
        ({"methods": [{"method": "lora", "model": "x"}]}, ["'lora'", "`model`", "models"]),
        ({"training_sets": {"toy": TrainingSet("tiny-sums", ["toy"], {"output_dir": "x"})}},
         ["training_sets.toy.recipe", "`output_dir`"]),
        ({"threads": 0}, ["threads"]),
    ],
)  # fmt: skip
def test_a_mistake_is_named_before_anything_runs(changes: dict, words: list[str]) -> None:
    with pytest.raises(RosaError) as error:
        plan(make_grid(**changes), resolve_recipe)
    assert all(word in str(error.value) for word in words)


@given(st.text(max_size=30))
def test_a_folder_name_is_one_safe_component(name: str) -> None:
    folder = folder_name(name)
    assert folder
    assert not set(folder) & set("/\\\0 :*?<>|")
    assert folder not in (".", "..")
    assert not folder.startswith(".")


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True))
def test_seeds_reach_the_recipes(seeds: list[int]) -> None:
    jobs = plan(make_grid(methods=["lora"], seeds=seeds), resolve_recipe)
    assert [job.recipe.seed for job in jobs] == seeds


@pytest.mark.parametrize(
    ("entry", "group"),
    [
        ("lora", "baseline"),
        ("ia3", "baseline"),  # PEFT's, not the study's
        ("rosa", "ours"),
        ("roae_only", "variant"),
        ({"name": "LoRA small", "method": "lora"}, "variant"),
    ],
)
def test_what_an_entry_is_in_the_comparison(entry: Any, group: str) -> None:
    assert parse_method_entry(entry).group == group


class TestGridFile:
    def parse(self, tmp_path: Any, text: str, *options: str) -> Grid:
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return GridParser().parse_args([str(file), *options])[0]

    TEXT = (
        "output_dir: a\nmodels: [rosa-tiny]\nmethods: [lora, {name: x, method: rosa}]\n"
        "training_sets:\n  toy: {data: tiny-sums, tasks: [toy]}\n"
        "tune: {learning_rates: [1.0e-3]}\n"
    )

    def with_keys(self, lines: str) -> str:
        """TEXT with some keys added or in the place of its own."""
        return yaml.safe_dump({**yaml.safe_load(self.TEXT), **yaml.safe_load(lines)})

    def test_keys_and_overrides(self, tmp_path: Any) -> None:
        grid = self.parse(tmp_path, self.TEXT, "--output_dir", "b", "--seeds", "[4, 5]")
        assert (grid.output_dir, grid.seeds) == ("b", [4, 5])
        assert grid.training_sets["toy"] == TrainingSet("tiny-sums", ["toy"])
        assert grid.tune == LearningRateSearch([1e-3])
        assert [entry.name for entry in grid.entries] == ["lora", "x"]

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("seedz: [1]", ["seedz", "seeds"]),
            ("evaluate: {limitt: 3}", ["evaluate.limitt", "limit"]),
            ("seeds: [a]", ["seeds"]),
            ("tune: {}", ["tune.learning_rates is missing"]),
            ("training_sets: {toy: tiny-sums}", ["training_sets.toy", "data, tasks"]),
            ("training_sets: {toy: {data: tiny-sums}}", ["training_sets.toy.tasks is missing"]),
            ("training_sets: [toy]", ["training_sets", "data, tasks"]),
        ],
    )
    def test_bad_keys(self, tmp_path: Any, line: str, words: list[str]) -> None:
        with pytest.raises(RosaError) as error:
            self.parse(tmp_path, self.with_keys(line))
        assert all(word in str(error.value) for word in words)

    def test_an_empty_key_means_its_defaults(self, tmp_path: Any) -> None:
        grid = self.parse(tmp_path, self.with_keys("evaluate:\nrecipe:\ntune:\n"))
        assert (grid.evaluate, grid.recipe, grid.tune) == (STUDY_OPTIONS, {}, None)

    def test_no_file(self) -> None:
        with pytest.raises(RosaError, match="name a grid"):
            GridParser().parse_args([])
