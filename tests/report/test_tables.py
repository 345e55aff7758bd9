"""A study's tables: what they say, and that they say it when things are missing."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from rosa.cli.main import main
from rosa.common.tables.model import Cell, Column, Row, Table, ranked
from rosa.common.tables.render import FORMATS, markdown
from rosa.compare.contamination import OVERLAP
from rosa.compare.results import RunResult, StudyResults
from rosa.compare.significance import mcnemar, welch
from rosa.errors import RosaError
from rosa.evaluate.results import TaskScore
from rosa.report.tables.build import average_table, difference_table, main_table
from rosa.report.tables.differences import best_baseline, differences
from rosa.report.tables.sections import Section, TableOptions, sections
from rosa.report.tables.write import SIGNIFICANCE, write_tables
from tests.support.synthetic_study import synthetic_study

ONE = {"toy": ["tiny-sums", "tiny-choice"]}


def only(study: StudyResults, **options) -> Section:
    (section,) = sections(study, TableOptions(**options))
    return section


def rows_of(table: Table) -> dict[str, list[Cell]]:
    return {row.label: list(row.cells) for block in table.blocks for row in block.rows}


def by_hand(percents: dict[str, list[float]], groups: dict[str, str]) -> StudyResults:
    """A study of one task with 1,000 examples, from the accuracy of every seed."""
    runs = [
        RunResult(
            model="m",
            train_set="s",
            method=method,
            title=method.upper(),
            group=groups[method],
            seed=seed,
            folder=f"{method}-{seed}",
            learning_rate=1e-3,
            trainable=1,
            total=100,
            scores=(TaskScore("t", "T", "x", round(10 * value), 1000, 0, 1000, 1000),),
        )
        for method, values in percents.items()
        for seed, value in enumerate(values)
    ]
    return StudyResults(Path("nowhere"), tuple(runs))


FIVE = {"a": [80.0, 80.1, 80.2], "b": [70.0, 70.3, 70.1], "rosa": [82.0, 82.2, 81.9]}
GROUPS = {"a": "baseline", "b": "baseline", "rosa": "ours"}


def test_the_main_table_holds_means_over_seeds(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE)
    table = main_table(only(study))
    assert [c.title for c in table.columns] == [
        "# Param (%)",
        "tiny-sums",
        "tiny-choice",
        "Micro avg. (%)",
        "Macro avg. (%)",
    ]
    assert list(rows_of(table)) == ["LoRA", "LN Tuning", "RoSA", "RoSA-RoAEonly"]
    runs = study.select(method="rosa")
    param, sums, _, micro, macro = rows_of(table)["RoSA"]
    assert param.value == pytest.approx(runs[0].percent)
    assert sums.value == pytest.approx(np.mean([run.accuracy("tiny-sums") for run in runs]))
    assert sums.spread is None
    assert micro.value == pytest.approx(np.mean([run.micro() for run in runs]))
    assert micro.spread == pytest.approx(np.std([run.micro() for run in runs], ddof=1))
    assert macro.value == pytest.approx(np.mean([run.macro() for run in runs]))
    every = rows_of(main_table(only(study, std=True)))["RoSA"]
    assert every[1].spread == pytest.approx(
        np.std([run.accuracy("tiny-sums") for run in runs], ddof=1)
    )


def test_best_and_second_are_chosen_from_what_is_printed():
    values = [80.04, 79.96, 79.9, 70.0, None]
    rows = [Row(str(i), (Cell(v),)) for i, v in enumerate(values)]
    styles = [row.cells[0].style for row in ranked(rows, [Column("x")], [0])]
    assert styles == ["best", "best", "second", "", ""]
    alone = ranked([Row("a", (Cell(1.0),)), Row("b", (Cell(1.0),))], [Column("x")], [0])
    assert [row.cells[0].style for row in alone] == ["", ""]  # a single row has no winner
    level = main_table(only(by_hand({"a": [80.0], "rosa": [80.0]}, GROUPS)))
    assert not any("best;" in note for note in level.all_notes("Bold", "underlined"))


def test_models_are_ranked_each_for_itself(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE, models=("rosa-tiny", "other/Model-1B"))
    table = main_table(only(study))
    assert [block.title for block in table.blocks] == ["rosa-tiny", "Model-1B"]
    for block in table.blocks:
        assert sum(row.cells[3].style == "best" for row in block.rows) == 1
    averages = average_table(only(study))
    assert [column.title for column in averages.columns] == ["rosa-tiny", "Model-1B"]
    for column, block in enumerate(table.blocks):
        for row, wide in zip(block.rows, averages.blocks[0].rows, strict=True):
            assert wide.cells[column] == row.cells[3]


def test_suites_are_in_tables_of_their_own(tmp_path):
    study = synthetic_study(tmp_path, train_sets={"all": ["boolq", "gsm8k", "piqa"]})
    found = sections(study)
    assert [section.name for section in found] == ["all-commonsense", "all-arithmetic"]
    assert [[task.title for task in section.tasks] for section in found] == [
        ["BoolQ", "PIQA"],
        ["GSM8K"],
    ]


# What is missing.


def test_missing_seeds_are_marked_with_their_reason(tmp_path):
    failed = [("rosa", 2), ("lora", 1), ("lora", 2), ("lora", 3)]
    section = only(synthetic_study(tmp_path, train_sets=ONE, failed=failed))
    table = main_table(section)
    (block,) = table.blocks
    assert [row.mark for row in block.rows] == ["‡", "", "‡", ""]
    assert [cell.value for cell in block.rows[0].cells] == [None] * 5
    assert "‡ RoSA: 2 of 3 seeds; seed 2 failed: out of memory on purpose." in table.notes
    expected = "‡ LoRA: 0 of 3 seeds; seeds 1, 2, 3 failed: out of memory on purpose."
    assert expected in table.notes
    for _, render in FORMATS.values():
        assert "out of memory on purpose" in render(table)


def test_runs_that_are_still_to_come_are_distinguished_from_failed_ones(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE)
    early = dataclasses.replace(study, runs=tuple(r for r in study.runs if r.seed == 1))
    notes = main_table(only(early)).notes
    expected = "‡ LoRA, LN Tuning, RoSA, RoSA-RoAEonly: 1 of 3 seeds; seeds 2, 3 not run yet."
    assert expected in notes
    assert any("is not possible (one seed)" in note for note in notes)


def test_a_model_without_any_run_is_in_the_table(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE, models=("rosa-tiny", "later"))
    early = dataclasses.replace(study, runs=tuple(r for r in study.runs if r.model == "rosa-tiny"))
    section = only(early)
    assert [block.title for block in main_table(section).blocks] == ["rosa-tiny", "later"]
    assert [block.title for block in difference_table(section).blocks] == ["rosa-tiny"]
    assert average_table(section).blocks[0].rows[0].cells[1].value is None


def test_a_study_without_runs_has_no_tables(tmp_path):
    assert write_tables(StudyResults(tmp_path, ()), tmp_path / "out") == []


# Stars.


def test_the_star_is_the_t_test_against_the_best_baseline():
    section = only(by_hand(FIVE, GROUPS))
    (a, b, rosa) = rows_of(main_table(section)).values()
    assert [cells[-2].star for cells in (a, b, rosa)] == [False, False, True]
    (note,) = [n for n in main_table(section).notes if n.startswith("*")]
    assert "best baseline, A, in micro avg.: two-sided Welch t-test over seeds, p < 0.05" in note
    found = {d.method: d for d in section.differences["m"]}
    assert found["rosa"].t == welch(FIVE["rosa"], FIVE["a"])
    assert found["b"].t.p < 0.05  # significantly worse, and so without a star
    assert found["rosa"].difference == pytest.approx(np.mean(FIVE["rosa"]) - np.mean(FIVE["a"]))


def test_another_baseline_may_be_named():
    section = only(by_hand(FIVE, GROUPS), baseline="B")
    assert [d.method for d in section.differences["m"]] == ["a", "rosa"]
    assert rows_of(main_table(section))["A"][-2].star
    (note,) = [n for n in main_table(section).notes if n.startswith("*")]
    assert "than the baseline, B" in note
    with pytest.raises(RosaError, match="did you mean 'rosa'"):
        sections(by_hand(FIVE, GROUPS), TableOptions(baseline="rossa"))


def test_no_star_says_why():
    def caption(percents, **options) -> str:
        notes = main_table(only(by_hand(percents, GROUPS), **options)).notes
        return next(note for note in notes if note.startswith("No star"))

    assert "is not possible (one seed)" in caption({"a": [80.0], "rosa": [90.0]})
    assert "(no spread between seeds)" in caption({"a": [80.0, 80.0], "rosa": [90.0, 90.0]})
    assert "no baseline to compare with" in caption({"rosa": [90.0, 91.0]})
    assert "no method is significantly better" in caption({"a": [80.0, 90.0], "rosa": [85.0, 86.0]})
    assert "(answers are missing)" in caption(FIVE, star="examples")


def test_holm_counts_the_methods_of_the_table():
    percents = {"a": [80.0, 80.1, 80.2], "b": [70.0, 70.3, 70.1], "rosa": [80.3, 80.6, 80.4]}
    plain, corrected = (only(by_hand(percents, GROUPS), holm=h) for h in (False, True))
    p = next(d for d in plain.differences["m"] if d.method == "rosa").t.p
    assert 0.025 < p < 0.05  # one test in two
    assert rows_of(main_table(plain))["ROSA"][-2].star
    assert rows_of(main_table(corrected))["ROSA"][-2].star  # the larger of two is not raised
    three = {**percents, "c": [80.2, 80.5, 80.4]}
    section = only(by_hand(three, {**GROUPS, "c": "variant"}), holm=True)
    assert next(d for d in section.differences["m"] if d.method == "rosa").t_holm == pytest.approx(
        2 * p
    )
    assert not rows_of(main_table(section))["ROSA"][-2].star
    assert "Holm-corrected" in " ".join(main_table(section).notes)


def test_the_tests_on_examples_read_the_answers(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE)
    (found,) = [d for d in only(study).differences["rosa-tiny"] if d.method == "rosa"]

    def shares(method: str, task: str) -> np.ndarray:
        answers = [study.correct(run, task) for run in study.select(method=method)]
        return np.mean([[a[i] for i in sorted(a)] for a in answers], axis=0)

    ours, theirs = (
        np.concatenate([shares(m, t) for t in ONE["toy"]]) for m in ("rosa", found.baseline)
    )
    assert found.mcnemar == mcnemar(ours, theirs)
    assert found.difference == pytest.approx(100 * np.mean(ours - theirs))
    assert found.interval.low < found.difference < found.interval.high


def test_answers_that_do_not_fit_together_are_not_paired(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE, skills={"lora": 0.5, "rosa": 0.6})
    file = tmp_path / study.select(method="rosa")[0].folder / "evaluation" / "tiny-sums.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[1:]))
    (found,) = only(study).differences["rosa-tiny"]
    assert (
        found.mcnemar.reason == found.interval.reason == "runs were evaluated on different examples"
    )
    file.write_text("".join(lines))  # the same command sees that the file has changed
    assert only(study).differences["rosa-tiny"][0].mcnemar.p is not None
    file.write_text('{"index": 0, "corr')
    assert (
        "tiny-sums.jsonl, row 1: bad JSON" in only(study).differences["rosa-tiny"][0].mcnemar.reason
    )
    file.unlink()
    assert only(study).differences["rosa-tiny"][0].mcnemar.reason == "answers are missing"


def test_the_order_of_answers_in_their_files_does_not_matter(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE, skills={"lora": 0.5, "rosa": 0.6})
    before = only(study).differences["rosa-tiny"]
    for run in study.select(method="rosa"):
        file = tmp_path / run.folder / "evaluation" / "tiny-sums.jsonl"
        file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))) + "\n")
    assert only(study).differences["rosa-tiny"] == before


def test_the_best_baseline_is_the_one_with_the_highest_mean():
    study = by_hand({"a": [80.0, 60.0], "b": [71.0, 71.0], "rosa": [90.0]}, GROUPS)
    groups = {method: study.select(method=method) for method in study.names("method")}
    assert best_baseline(groups, "x") == "b"
    assert [d.baseline for d in differences(study, "m", "s", "x")] == ["b", "b"]


def test_the_table_of_differences(tmp_path):
    table = difference_table(only(synthetic_study(tmp_path, train_sets=ONE)))
    first, *others = table.blocks[0].rows
    assert (first.label, first.cells[1].value) == ("LoRA", None)
    assert [row.label for row in others] == ["LN Tuning", "RoSA", "RoSA-RoAEonly"]
    text = markdown(table)
    assert "| p \\(t over seeds) |".replace("\\", "") in text
    assert "| 95 % interval |" in text


# What the notes say.


def test_seen_questions_are_marked_by_what_was_found_and_not_by_a_list(tmp_path):
    study = synthetic_study(tmp_path, train_sets={"math": ["MultiArith", "gsm8k"]})
    assert study.runs[0].scores[0].seen_in_training  # the task's file says so, of another data set
    unchecked = main_table(only(study))
    assert [c.mark for c in unchecked.columns] == [""] * 5
    assert "Not checked: whether the training data contains questions of these tests." in (
        unchecked.notes
    )
    found = {"MultiArith": {"matches": 0, "of": 600}, "gsm8k": {"matches": 3, "of": 1319}}
    (tmp_path / OVERLAP).write_text(json.dumps({"math": found}))
    table = main_table(only(study))
    assert [c.mark for c in table.columns] == ["", "", "†", "", ""]
    assert any("3 of 1,319 in GSM8K" in note for note in table.notes)
    found["gsm8k"]["matches"] = 0
    (tmp_path / OVERLAP).write_text(json.dumps({"math": found}))
    assert any("contains no question of these tests" in n for n in main_table(only(study)).notes)


def test_the_protocol_is_the_grids(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE)
    assert "Evaluation protocol llm-adapters, greedy decoding." in main_table(only(study)).notes
    asked = {"num_beams": 4, "protocol": "strict", "num_fewshot": 2, "max_new_tokens": 9}
    other = dataclasses.replace(study, grid={**study.grid, "evaluate": asked})
    assert ("Evaluation protocol strict, 4 beams, 2-shot, 9 new tokens.") in main_table(
        only(other)
    ).notes


def test_test_sets_that_are_not_the_published_ones_are_reported(tmp_path):
    notes = main_table(only(synthetic_study(tmp_path, train_sets={"c": ["boolq"]}))).notes
    assert "Not the published test sets: BoolQ 60 rows, not 3,270." in notes


# Files and the command.


def test_all_formats_of_all_tables_are_written(tmp_path):
    skills = {"lora": 0.5, "rosa": 0.6}
    study = synthetic_study(tmp_path, models=("rosa-tiny", "b"), skills=skills, examples=8)
    files = write_tables(study, tmp_path / "out")
    names = [f"{s}{t}" for s in ("commonsense", "math") for t in ("", "-averages", "-significance")]
    expected = {f"{name}{ending}" for name in names for ending, _ in FORMATS.values()}
    assert {f.name for f in files} == expected | {SIGNIFICANCE}
    assert {f.name for f in (tmp_path / "out").iterdir()} == {f.name for f in files}
    again = {f: f.read_bytes() for f in files}
    assert {f: f.read_bytes() for f in write_tables(study, tmp_path / "out")} == again


def test_significance_json_has_numbers_or_reasons_and_never_nan(tmp_path):
    study = synthetic_study(tmp_path, train_sets=ONE, failed=[("rosa", 1), ("rosa", 2)])
    write_tables(study, tmp_path / "out")
    content = json.loads((tmp_path / "out" / SIGNIFICANCE).read_text())
    json.dumps(content, allow_nan=False)
    (rosa,) = [d for d in content["differences"] if d["method"] == "rosa"]
    assert rosa["t"]["p"] is None
    assert rosa["t"]["reason"] == "one seed"
    assert rosa["mcnemar"]["p"] is not None
    assert rosa["ours"] == {"mean": pytest.approx(rosa["ours"]["mean"]), "std": None, "n": 1}


def test_the_command_prints_writes_and_explains(tmp_path, capsys):
    study = synthetic_study(tmp_path, train_sets=ONE)
    assert main(["tables", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Toy tasks after training on toy, rosa-tiny: accuracy in percent" in shown
    assert "p (McNemar)" in shown.replace("\n", " ") or "(McNemar)" in shown
    assert main(["tables", str(tmp_path), "--format", "csv", "--methods", "LoRA,rosa"]) == 0
    first = next(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert first[:2] == ["Model", "Method"]
    out = tmp_path / "out"
    assert (
        main(["tables", str(tmp_path), "--averages", "--format", "latex", "--out", str(out)]) == 0
    )
    assert [f.name for f in out.iterdir()] == ["toy-averages.tex"]
    assert main(["tables", str(tmp_path), "--out", str(out / "toy-averages.tex")]) == 2
    assert "is a file; use another folder" in capsys.readouterr().err
    dataclasses.replace(study, folder=tmp_path, runs=()).save()
    assert main(["tables", str(tmp_path)]) == 2
    assert "no finished run yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a study's folder"),
        (["--paper", "tabel1"], "did you mean 'table1'?"),
        (["--paper", "table1", "--std"], "need a study's folder"),
        (["--paper", "table1", "--holm"], "need a study's folder"),
        (["--paper", "table1", "--star", "examples"], "need a study's folder"),
        (["nowhere"], "holds no study"),
    ],
)
def test_the_command_says_what_is_wrong(words, message, capsys):
    assert main(["tables", *words]) == 2
    assert message in capsys.readouterr().err
