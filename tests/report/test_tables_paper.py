"""The paper's tables are reproduced: its averages, its winners, its numbers in a study's tables."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from rosa.assets.paper_numbers import paper_data
from rosa.budget.parameters import builtin_models
from rosa.cli.main import main
from rosa.common.tables.model import Table
from rosa.common.tables.render import csv as to_csv
from rosa.common.tables.render import latex, markdown
from rosa.compare.results import RunResult, StudyResults
from rosa.errors import RosaError
from rosa.evaluate.results import TaskScore
from rosa.evaluate.tasks import built_in_tasks
from rosa.methods.registry import load_method
from rosa.report.tables import paper
from rosa.report.tables.build import main_table
from rosa.report.tables.sections import sections
from rosa.report.tables.write import write_tables
from tests.support.pages import read_page, rosa_commands, section

PRINTED = json.loads((Path(__file__).parents[1] / "fixtures" / "paper_accuracies.json").read_text())
# Where averaging the printed accuracies does not print as the paper's average: (model, method).
OFF = {
    (1, "Llama 3.1 8B", "DoRA"): 83.743,
    (1, "Llama 3.1 8B", "BONE"): 77.657,
    (1, "Gemma 2 9B", "AdaLoRA"): 85.154,
    (3, "Qwen 2.5 7B", "LoRA"): 77.754,
    (3, "Qwen 2.5 7B", "AdaLoRA"): 76.357,
}


def read(table: Table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(table))))


def score_tables() -> dict[int, Table]:
    return {n: paper.paper_tables(f"table{n}")[0] for n in (1, 3)}


def test_the_package_holds_the_papers_numbers():
    """Against a copy that was typed from the paper for other tests."""
    found = []
    for number, table in score_tables().items():
        for row in read(table):
            model = row["Model"]
            tasks = list(row)[3:-3] if "significant" in row else list(row)[3:-2]
            accuracies = {task: float(row[task]) for task in tasks}
            found.append((number, model, row["Method"], accuracies, float(row["Micro avg. (%)"])))
    expected = [(r["table"], r["model"], r["method"], r["accuracies"], r["micro"]) for r in PRINTED]
    assert len(found) == 36
    assert found == expected


def test_31_of_36_averages_print_as_the_papers_and_five_are_rounding():
    off = {}
    for number, table in score_tables().items():
        for row in read(table):
            again, printed = float(row["Recomp. (%)"]), float(row["Micro avg. (%)"])
            if f"{again:.1f}" != f"{printed:.1f}":
                off[number, row["Model"], row["Method"]] = again
                assert abs(again - printed) < 0.06
    assert off == {key: pytest.approx(value, abs=5e-4) for key, value in OFF.items()}


def study_of_the_paper(folder: Path, number: int) -> StudyResults:
    """One seed per method whose counts are the printed accuracies times the sizes of the tests."""
    titles = {task.title: task for task in built_in_tasks().values()}
    runs = []
    for row in PRINTED:
        if row["table"] != number:
            continue
        method = load_method(row["method"].removesuffix(" (ours)"))
        scores = [
            TaskScore(t.name, t.title, t.suite, accuracy * t.size / 100, t.size, 0, t.size, t.size)
            for t, accuracy in ((titles[k], a) for k, a in row["accuracies"].items())
        ]
        values = {"learning_rate": 1e-3, "trainable": 1, "total": 100, "scores": tuple(scores)}
        name = {"model": f"hub/{row['model'].replace(' ', '-')}", "train_set": "s", "seed": 1}
        kind = {"method": method.name, "title": row["method"], "group": method.group}
        runs.append(RunResult(**name, **kind, folder="none", **values))
    return StudyResults(folder, tuple(runs))


@pytest.mark.parametrize("number", [1, 3])
def test_a_study_with_the_papers_accuracies_renders_the_papers_table(number, tmp_path):
    (section,) = sections(study_of_the_paper(tmp_path, number))
    table = main_table(section)
    rows = [row for row in PRINTED if row["table"] == number]
    shown = [
        [re.sub(r"\*\*|</?u>|\\.*", "", cell).strip() for cell in line.strip("|").split("|")]
        for line in markdown(table).splitlines()
        if line.startswith("|")
    ][2:]
    models = 1 if number == 1 else 0
    for row, cells in zip(rows, shown, strict=True):
        assert cells[models] == row["method"]
        printed = [f"{value:.1f}" for value in row["accuracies"].values()]
        assert cells[models + 2 : models + 2 + len(printed)] == printed
        micro = cells[models + 2 + len(printed)]
        if (number, row["model"], row["method"]) in OFF:
            assert abs(float(micro) - row["micro"]) < 0.1 + 1e-9
        else:
            assert micro == f"{row['micro']:.1f}"
        assert cells[-1] == f"{row['micro']:.1f}"  # the paper's


def test_winners_are_the_papers():
    """Qwen2.5-7B in Table 1, where its bold and underlined cells were read off the page."""
    block = score_tables()[1].blocks[0]
    styles = {row.label: [cell.style for cell in row.cells[1:10]] for row in block.rows}
    best, second = "best", "second"
    assert styles["RoSA (ours)"] == [best] * 4 + [second] + [best] * 2 + [second, best]
    assert styles["AdaLoRA"][4] == styles["AdaLoRA"][6] == styles["BONE"][7] == best
    assert block.rows[-1].cells[9].star
    (two,) = paper.paper_tables("table2")
    assert [c.style for c in two.blocks[0].rows[2].cells] == [best] * 4
    assert two.blocks[0].rows[1].cells[2].style == second


def test_table_4_has_two_parts():
    ablation, ratios = paper.paper_tables("Table 4")
    assert [row.label for row in ratios.blocks[0].rows] == ["0.10", "0.25", "0.50", "0.75", "1.00"]
    assert ratios.blocks[0].rows[2].cells[0].style == "best"
    assert [row.cells[0].value for row in ablation.blocks[0].rows] == [85.9, 84.8, 85.6, 83.9, 80.7]


def test_methods_and_tasks_of_the_paper_are_those_of_the_package():
    for key in ("table1", "table3"):
        assert set(paper_data(key)["tasks"]) <= set(built_in_tasks())
        for block in paper_data(key)["models"]:
            for row in block["rows"]:
                builtin = block.get("builtin", "Qwen2.5-7B")  # Table 3 has this model alone
                assert load_method(row["method"]).paper_percent[builtin] == row["percent"]
                assert builtin in builtin_models()
    for row in paper_data("table2")["rows"] + paper_data("table4")["ablation"]:
        load_method(row["method"])


def test_the_papers_numbers_are_added_only_where_names_match():
    tasks = [t.name for t in built_in_tasks().values() if t.suite == "commonsense"]
    found = paper.averages(tasks, ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-8B", "rosa-tiny"])
    assert len(found) == 2 * 9 + 8  # Table 1's, and the variants and other k_ratios of Table 4
    assert found["Qwen/Qwen2.5-7B", "rosa"] == 85.9
    assert found["Qwen/Qwen2.5-7B", "rosa_lr64"] == 80.7
    assert found["Qwen/Qwen2.5-7B", "rosa_k_ratio_0.25"] == 82.2
    assert paper.averages(tasks, ["Qwen/Qwen2.5-3B"]) == {
        ("Qwen/Qwen2.5-3B", "adalora"): 81.1,
        ("Qwen/Qwen2.5-3B", "c3a"): 81.2,
        ("Qwen/Qwen2.5-3B", "rosa"): 82.0,
    }
    assert paper.matching_table(tasks, ["Qwen/Qwen2.5-3B"]) is None
    assert found["meta-llama/Llama-3.1-8B", "ln_tuning"] == 78.6
    assert paper.averages(tasks, ["google/gemma-2-9b"])["google/gemma-2-9b", "vera"] == 70.9
    assert paper.averages(tasks[1:], ["Qwen/Qwen2.5-7B"]) == {}
    assert paper.averages(tasks, ["Qwen/Qwen2.5-7B-Instruct"]) == {}
    assert paper.matching_table(tasks, ["rosa-tiny"]) is None


def test_the_papers_table_is_written_with_a_study_of_its_models(tmp_path):
    files = write_tables(study_of_the_paper(tmp_path, 3), tmp_path / "out")
    assert "paper-table3.tex" in {file.name for file in files}


def test_an_unknown_table_is_an_error():
    with pytest.raises(RosaError, match="did you mean 'table1'"):
        paper.paper_tables("table11")


def test_the_docs_say_the_same_and_their_commands_run(capsys):
    page = section(read_page("guides/comparing.md"), "## Tables")
    for (table, model, method), value in OFF.items():
        assert f"| Table {table}, {model} | {method} |" in page
        assert f"| {value:.2f} |" in page
    (command,) = rosa_commands(page)
    assert main(command) == 0
    assert "Gemma 2 9B" in capsys.readouterr().out


@pytest.mark.parametrize("name", paper.NAMES)
def test_the_command_prints_the_papers_tables(name, capsys):
    assert main(["tables", "--paper", name, "--format", "latex"]) == 0
    out = capsys.readouterr().out
    assert out.count(r"\begin{table*}") == (2 if name == "table4" else 1)
    assert latex(paper.paper_tables(name)[0]) in out
