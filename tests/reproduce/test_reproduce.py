"""`rosa reproduce`: the paper's tables and figures as grids, their data, their pictures."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from rosa import DlsConfig, RosaConfig
from rosa.assets.paper_numbers import paper_data
from rosa.cli.main import main
from rosa.cli.recipe_parser import resolve_recipe
from rosa.compare.grid import TrainingSet, parse_method_entry
from rosa.compare.plan import plan
from rosa.compare.results import RunResult, StudyResults
from rosa.errors import RosaError
from rosa.evaluate.results import TaskScore
from rosa.methods.registry import method_names
from rosa.reproduce import figures
from rosa.reproduce.output import paper_tables_of
from rosa.reproduce.targets import (
    GRIDS,
    check_training_data,
    load_target,
    scale_setting,
    target_names,
)
from tests.support.pages import read_page

RUNS = {
    ("table1", "full"): 3 * 9 * 5,
    ("table2", "full"): 4 * 3 * 5,
    ("table3", "full"): 9 * 5,
    ("table4", "full"): (5 + 4) * 5,
    ("figure3", "full"): 5 * 5,
    ("figure4", "full"): 5 * 5,
    ("table1", "tiny"): 9 * 2,
    ("table2", "tiny"): 3 * 2,
    ("table3", "tiny"): 9 * 2,
    ("table4", "tiny"): (5 + 4) * 2,
    ("figure3", "tiny"): 5 * 2,
    ("figure4", "tiny"): 5 * 2,
}
COUNTED = [("figure4", "full"), ("table1", "tiny")]  # the others count on models as large, nightly
PAPER_RECIPE = {"learning_rate": 1e-3, "batch_size": 2, "gradient_accumulation": 2}
PAPER_RECIPE |= {"schedule": "cosine", "warmup": 0.05, "weight_decay": 0.0}


def jobs(name, scale, **changes):
    target = load_target(name, scale, **changes)
    return plan(target.grid, resolve_recipe)


def dry_run(capsys, *words):
    assert main(["reproduce", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(("name", "scale"), RUNS)
def test_every_run_is_planned(name, scale):
    assert len(jobs(name, scale)) == RUNS[name, scale]


@pytest.mark.parametrize(
    ("name", "scale"),
    [key if key in COUNTED else pytest.param(*key, marks=pytest.mark.slow) for key in RUNS],
)
def test_a_dry_run_lists_every_run(name, scale, capsys):
    printed = dry_run(capsys, name, "--scale", scale, "--dry_run")
    rows = [line for line in printed.splitlines() if re.search(r" (GB|MB) ", line)]
    assert len(rows) == RUNS[name, scale]
    assert f"{len(rows)} runs, about" in printed
    assert ("was not found" in printed) == (scale == "full")


def test_every_target_is_known_and_figure_1_trains_nothing(capsys):
    assert set(target_names()) == {name for name, _ in RUNS} | {"figure1"}
    for scale, model in (("full", "meta-llama/Llama-2-7b-hf"), ("tiny", "rosa-tiny")):
        printed = dry_run(capsys, "figure1", "--scale", scale, "--dry_run")
        assert f"rosa inspect {model}" in printed
    assert "13.5 GB" in dry_run(capsys, "figure1", "--dry_run")


def test_a_dry_run_counts_the_papers_budget(capsys):
    printed = dry_run(capsys, "figure4", "--dry_run", "--seeds", "1")
    rows = {line.split()[2]: line.split() for line in printed.splitlines()[2:7]}
    assert rows["rosa"][3:6] == ["1", "19,927,040", "0.261"]
    assert float(rows["rosa_lr128"][5]) > float(rows["rosa_low_0.5"][5]) > 0.3


def test_the_full_scale_is_the_papers_setting():
    setting = scale_setting("full")
    assert PAPER_RECIPE.items() <= setting["recipe"].items()
    dls = asdict(DlsConfig())
    assert setting["recipe"]["dls"] == {key: dls[key] for key in setting["recipe"]["dls"]}
    default = RosaConfig()
    for key, value in setting["methods"]["rosa"]["adapter"].items():
        assert value == getattr(default, key)
    assert setting["seeds"] == [2333, 1000, 2000, 3000, 4000]
    assert {e.name for e in load_target("table1").grid.entries} == set(method_names())


def test_every_value_of_the_full_scale_says_where_it_comes_from():
    text = (GRIDS / "full.yaml").read_text(encoding="utf-8")
    for section in ("recipe", "evaluate"):
        block = re.search(rf"^{section}:\n((?:  .*\n)+)", text, re.M)[1]
        for line in block.splitlines():
            assert re.search(r"# (\[(paper|later|suite|ours)\]|for the methods)", line), line


def test_a_target_shares_its_runs_with_others():
    def ids(name):
        return {job.id: asdict(job) for job in jobs(name, "full")}

    table4, figure3, figure4, table2 = map(ids, ("table4", "figure3", "figure4", "table2"))
    assert figure3 | figure4 == table4
    assert len(figure3.keys() & figure4.keys()) == 5  # RoSA itself
    qwen = {i: j for i, j in table2.items() if "Qwen2.5-7B" in i and "/rosa/" in i}
    assert len(qwen) == 5
    assert qwen.items() <= table4.items()


def test_k_ratios_reach_the_runs():
    found = {job.recipe.dls.k_ratio for job in jobs("figure3", "full")}
    assert found == {0.10, 0.25, 0.50, 0.75, 1.00}
    ablation = {job.group.method: job.recipe for job in jobs("figure4", "full")}
    assert ablation["roae_only"].dls is None
    assert ablation["rosa_low_0.5"].adapter["r_low"] == 0.5
    assert ablation["rosa_lr64"].dls == DlsConfig()


def test_the_tiny_scale_changes_the_full_one_and_repeats_nothing():
    full = yaml.safe_load((GRIDS / "full.yaml").read_text(encoding="utf-8"))
    tiny = yaml.safe_load((GRIDS / "tiny.yaml").read_text(encoding="utf-8"))
    for section in ("recipe", "evaluate"):
        for key, value in tiny[section].items():
            assert full[section].get(key) != value
    recipe = jobs("figure3", "tiny")[0].recipe
    assert (recipe.model, recipe.schedule, recipe.dls.interval) == ("rosa-tiny", "cosine", 10)
    assert recipe.dls.p_exploit == 0.8


def test_a_model_is_named_by_its_last_part_or_freely():
    assert load_target("table1", "full", model="llama-3.1-8b").models == (
        "meta-llama/Llama-3.1-8B",
    )
    assert load_target("table1", "full", model="org/other").models == ("org/other",)
    assert len(jobs("table1", "tiny", model="some/folder/model", seeds=[1])) == 9


def test_changes_reach_the_grid():
    grid = load_target(
        "figure3", "tiny", output_dir="x", seeds=[7], max_steps=3, limit=5, num_beams=4
    ).grid
    assert (grid.output_dir, grid.seeds, grid.recipe["max_steps"]) == ("x", [7], 3)
    assert (grid.evaluate.limit, grid.evaluate.num_beams, grid.evaluate.batch_size) == (5, 4, 64)


@pytest.fixture
def adapters_clone(tmp_path: Path) -> Path:
    """A folder like a clone of LLM-Adapters, with other rows than the paper's."""
    train = tmp_path / "clone" / "ft-training_set"
    train.mkdir(parents=True)
    row = {"instruction": "Is it?", "input": "", "output": "the correct answer is true"}
    (train / "commonsense_15k.json").write_text(json.dumps([row] * 40))
    test = tmp_path / "clone" / "dataset" / "boolq"
    test.mkdir(parents=True)
    (test / "test.json").write_text("[]")
    return tmp_path / "clone"


def test_training_file_and_tests_are_found_in_a_clone(adapters_clone):
    grid = load_target("table1", "full", data=str(adapters_clone)).grid
    data = grid.training_sets["Commonsense15K"].data
    assert data == str(adapters_clone / "ft-training_set" / "commonsense_15k.json")
    assert grid.evaluate.data == str(adapters_clone / "dataset")
    assert load_target("table1", "full", data=data).grid.evaluate.data is None


def test_tests_may_lie_elsewhere_and_be_fewer(adapters_clone):
    changes = {"data": str(adapters_clone), "test_data": "elsewhere", "tasks": ["boolq", "piqa"]}
    grid = load_target("table1", "full", **changes).grid
    assert grid.evaluate.data == "elsewhere"
    assert grid.training_sets["Commonsense15K"].tasks == ["boolq", "piqa"]


def test_other_training_data_raises_with_both_hashes(adapters_clone):
    target = load_target("table1", "full", data=str(adapters_clone))
    train_set = target.grid.training_sets["Commonsense15K"]
    own = hashlib.sha256(Path(train_set.data).read_bytes()).hexdigest()
    with pytest.raises(RosaError, match=f"{own}.*86d00e3729.*--any_data"):
        check_training_data(target)
    accepted = check_training_data(target, any_data=True).grid.training_sets
    assert list(accepted) == ["Commonsense15K (stand-in)"]
    assert accepted["Commonsense15K (stand-in)"] == TrainingSet(
        train_set.data, ["commonsense"], {}, own
    )


def test_the_right_file_is_no_stand_in(adapters_clone, monkeypatch):
    target = load_target("table1", "full", data=str(adapters_clone))
    train_set = target.grid.training_sets["Commonsense15K"]
    train_set.sha256 = hashlib.sha256(Path(train_set.data).read_bytes()).hexdigest()
    assert check_training_data(target, any_data=True).grid.training_sets == {
        "Commonsense15K": train_set
    }


def test_the_papers_hashes(shared_data):
    stand_in = shared_data / "train" / "commonsense_15k_standin.json"
    target = load_target("table2", "full", data=str(stand_in))
    with pytest.raises(RosaError, match="86d00e372905193c968c5ebbc47024a0b166b7138b4c5c7571500157"):
        check_training_data(target)
    assert target.grid.training_sets["Commonsense15K"].data == str(stand_in)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["table9"], "there is no target 'table9' .did you mean 'table"),
        (["table1", "--scale", "small"], "scale: expected one of"),
        (
            ["table3"],
            "Math10K needs math_10k.json, which was not found; get it from https://github",
        ),
        (["table3", "--data", "."], "the folder . has no math_10k.json"),
        (["table3", "--data", "nowhere"], "there is no file or folder nowhere"),
        (["table3", "--data", "an/owner"], "math_10k.json cannot be downloaded"),
        (["table3", "--scale", "tiny", "--data", "."], "toy comes with the package"),
        (["table3", "--dry_run", "--device_flops", "0"], "--device_flops must be above 0"),
        (["table3", "--scale", "tiny", "--workers", "0"], "workers must be at least 1"),
        (["table1", "--scale", "tiny", "--dry_run", "--limit", "0"], "limit must be at least 1"),
        (["table1", "--scale", "tiny", "--dry_run", "--tasks", "toys"], "did you mean 'toy'"),
        (["figure1", "--scale", "tiny", "--limit", "3"], "evaluates nothing, so remove --limit"),
    ],
)
def test_bad_input_is_answered_in_a_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists()


def results(folder, name, micros, seeds=(1, 2)):
    """A study of a target with the given accuracies by method, each seed one point apart."""
    grid = load_target(name, "tiny").grid
    runs = []
    for entry in map(parse_method_entry, grid.methods):
        for i, seed in enumerate(seeds if entry.name in micros else ()):
            score = TaskScore("toy", "toy", "toy", micros[entry.name] + i, 100, 0, 100, 0)
            runs.append(
                RunResult(
                    "rosa-tiny",
                    "toy",
                    entry.name,
                    entry.name,
                    "ours",
                    seed,
                    f"runs/{entry.name}",
                    1e-3,
                    10,
                    100,
                    (score,),
                )
            )
    return StudyResults(folder, tuple(runs), grid=asdict(grid))


def test_figure_3_takes_its_k_ratios_from_the_grid(tmp_path):
    study = results(tmp_path, "table4", {"rosa": 50, "rosa_k_ratio_0.10": 20, "roae_only": 99})
    found = figures.accuracy_by_k_ratio(study, "rosa-tiny")
    assert list(found) == [0.10, 0.50]
    assert found[0.10].mean == 20.5
    assert found[0.10].std == pytest.approx(0.5**0.5)
    figures.draw_figure3(study, "rosa-tiny", tmp_path / "figure3.png")
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")


def test_figure_4_draws_what_has_finished(tmp_path):
    study = results(tmp_path, "figure4", {"rosa": 0, "rosa_lr64": 0}, seeds=[1])
    figures.draw_figure4(study, "rosa-tiny", tmp_path / "figure4.png")
    assert (tmp_path / "figure4.png").read_bytes().startswith(b"\x89PNG")
    assert figures.micro_over_seeds(study, "rosa-tiny", "roae_only") is None
    with pytest.raises(RosaError, match="no finished run for figure 3"):
        figures.draw_figure3(results(tmp_path, "figure4", {}), "rosa-tiny", tmp_path / "x.png")


def test_the_papers_half_of_table_4_is_next_to_each_figure():
    assert [t.name for t in paper_tables_of("figure3")] == ["paper-table4-k_ratio"]
    assert [t.name for t in paper_tables_of("figure4")] == ["paper-table4-ablation"]
    assert len(paper_tables_of("table4")) == 2
    printed = {row["k_ratio"]: row["micro"] for row in paper_data("table4")["k_ratio"]}
    assert max(printed, key=printed.get) == 0.5


@pytest.mark.slow
def test_a_figure_is_reproduced_on_the_toy_model(tmp_path, capsys):
    words = ["reproduce", "figure3", "--scale", "tiny", "--output_dir", str(tmp_path / "study")]
    words += ["--max_steps", "3", "--limit", "4", "--seeds", "1", "--workers", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "RoSA, k_ratio 0.75" in printed
    assert "85.9" in printed  # the paper's, below ours
    folder = tmp_path / "study" / "figure3"
    for name in ("figure3.png", "toy.md", "paper-table4-k_ratio.md"):
        assert (folder / name).is_file()
    assert len(StudyResults.load(tmp_path / "study").runs) == 5
    # Figure 4 has RoSA in common: four runs are new.
    words[1] = "figure4"
    assert main(words) == 0
    assert len(list((tmp_path / "study" / "runs").rglob("adapter_model.safetensors"))) >= 9
    assert (tmp_path / "study" / "figure4" / "figure4.png").is_file()
    assert (tmp_path / "study" / "figure3" / "figure3.png").is_file()


@pytest.mark.slow
def test_a_real_model_on_stand_in_data(shared_data, tmp_path, capsys):
    """What a reader without the original files can do: everything but the paper's numbers."""
    base = shared_data / "stories260K"
    model = str(tmp_path / "stories260K")
    assert main(["convert", str(base / "stories260K.bin"), str(base / "tok512.bin"), model]) == 0
    words = ["reproduce", "figure3", "--model", model, "--seeds", "1", "--max_steps", "2"]
    rows = json.loads((shared_data / "train" / "commonsense_15k_standin.json").read_text())
    (tmp_path / "commonsense_15k.json").write_text(json.dumps(rows[:200]))
    words += ["--data", str(tmp_path), "--any_data"]
    words += ["--test_data", str(shared_data / "test"), "--tasks", "ARC-Easy", "openbookqa"]
    words += ["--limit", "2", "--output_dir", str(tmp_path / "study")]
    assert main(words) == 0
    study = StudyResults.load(tmp_path / "study")
    assert {run.train_set for run in study.runs} == {"Commonsense15K (stand-in)"}
    assert "after training on Commonsense15K (stand-in)" in capsys.readouterr().out


def test_the_docs_commands_are_valid(tmp_path, monkeypatch, capsys):
    page = read_page("guides/comparing.md")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^rosa (reproduce [^#\n]*)", page, re.M)
    assert len(commands) >= 4
    for command in commands:
        words = [w for w in command.split() if w not in ("--dry_run", "--any_data")]
        if "--data" in words:
            del words[words.index("--data") : words.index("--data") + 2]
        if "full" in words or "--scale" not in words:
            words += ["--model", "rosa-tiny", "--seeds", "1"]  # counted in no time
        assert main([*words, "--dry_run"]) == 0
    capsys.readouterr()
