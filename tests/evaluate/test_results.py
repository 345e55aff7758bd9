"""Averages and tables, against the paper's own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosa.common.tables.render import terminal
from rosa.evaluate.results import Results, TaskScore, micro_average
from rosa.evaluate.tasks import built_in_tasks

PAPER = json.loads((Path(__file__).parents[1] / "fixtures" / "paper_accuracies.json").read_text())


def one(name="boolq", correct=3, scored=4, suite="commonsense", **changes):
    values = {"title": name, "unparsable": 1, "rows": scored, "size": 0, **changes}
    return TaskScore(name=name, correct=correct, scored=scored, suite=suite, **values)


@pytest.mark.parametrize(
    "row", PAPER, ids=lambda row: f"table{row['table']}-{row['model']}-{row['method']}"
)
def test_the_papers_micro_averages_come_out(row):
    """Sizes are the task files'. Printed accuracies are rounded, so the mean is known to 0.05 only,
    and its printed form to 0.1; in fact none of the 36 is off by more than 0.06.
    """
    sizes = {t.title: t.size for t in built_in_tasks().values()}
    weights = [sizes[title] for title in row["accuracies"]]
    micro = micro_average(list(row["accuracies"].values()), weights)
    assert abs(micro - row["micro"]) <= 0.06


def test_the_paper_averages_over_examples_and_not_over_tasks():
    assert len(PAPER) == 36
    sizes = {t.title: t.size for t in built_in_tasks().values()}
    micro_right = macro_right = 0
    for row in PAPER:
        values = list(row["accuracies"].values())
        micro = micro_average(values, [sizes[t] for t in row["accuracies"]])
        micro_right += round(micro, 1) == row["micro"]
        macro_right += round(sum(values) / len(values), 1) == row["micro"]
    assert micro_right == 31  # the other five are at the border of rounding
    assert macro_right == 0


@given(
    counts=st.lists(
        st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None)
def test_micro_is_over_examples_and_macro_over_tasks(counts):
    (average,) = Results([one(f"t{i}", c, n) for i, (c, n) in enumerate(counts)]).averages
    correct, scored = (sum(column) for column in zip(*counts, strict=True))
    assert math.isclose(average.micro, 100 * correct / scored, abs_tol=1e-9)
    macro = 100 * sum(c / n for c, n in counts) / len(counts)
    assert math.isclose(average.macro, macro, abs_tol=1e-9)


@given(counts=st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(deadline=None, max_examples=50)
def test_the_interval_holds_every_share_that_the_score_test_does_not_reject(counts):
    """Wilson's interval by its definition: |p - share| = 1.96 standard errors at the share p."""
    correct, scored = counts
    score = one(correct=correct, scored=scored)
    for bound in score.interval:
        p = bound / 100
        error = 1.959963984540054 * math.sqrt(p * (1 - p) / scored)
        assert math.isclose(abs(p - correct / scored), error, abs_tol=1e-6)
    assert score.interval[0] <= score.accuracy + 1e-9
    assert score.interval[1] >= score.accuracy - 1e-9


def test_a_task_without_answers_has_no_interval():
    assert one(correct=0, scored=0).interval is None


def test_suites_are_not_averaged_together():
    results = Results([one("boolq", 4, 4), one("gsm8k", 0, 4, suite="arithmetic")])
    assert [(a.suite, a.micro) for a in results.averages] == [
        ("commonsense", 100.0),
        ("arithmetic", 0.0),
    ]
    assert "arithmetic micro | 0.0" in results.markdown()


def test_the_markdown_table_by_hand():
    scores = [
        one("BoolQ", 3, 4, rows=4),
        one("PIQA", 1, 2, rows=9, size=10, seen_in_training=("Math10K",)),
    ]
    _, table, notes, settings = Results(scores, {"seed": 5}).markdown().split("\n\n")
    assert table == (
        "| task | accuracy | 95 % interval | correct | scored | unparsable |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| BoolQ | 75.0 | 30.1 to 95.4 | 3 | 4 | 1 |\n"
        "| PIQA † | 50.0 | 9.5 to 90.5 | 1 | 2 of 9, seed 5 | 1 |\n"
        "| micro-average | 66.7 |  |  |  |  |\n"
        "| macro-average | 62.5 |  |  |  |  |"
    )
    seen, size = notes.splitlines()
    assert seen.startswith("- † Math10K holds the training part of this test")
    assert size == "- PIQA: this test set has 9 rows, the published one 10."
    assert settings == "- seed: 5\n"


def test_the_footnote_names_the_adapters_own_training_data():
    score = one(seen_in_training=("Math10K",))
    known = Results([score], {"trained_on": ["gsm8k.json"]}).footnotes()
    assert known[0].endswith("This adapter was trained on gsm8k.json.")
    assert Results([one()]).footnotes() == []


def test_the_terminal_table_shows_what_the_markdown_shows():
    results = Results([one("BoolQ", 3, 4), one("MultiArith", 1, 3, seen_in_training=("Math10K",))])
    shown = terminal(results.table())
    body = [line.split("|")[1:3] for line in results.markdown().splitlines() if "|" in line]
    for label, accuracy in [*body[:1], *body[2:]]:
        assert label.strip() in shown
        assert accuracy.strip() in shown
    assert "† Math10K holds" in shown


def test_json_holds_counts_averages_and_notes():
    plain = json.loads(json.dumps(Results([one()], {"seed": 1}, ["note"]).to_json()))
    assert plain["tasks"][0]["correct"] == 3
    assert plain["tasks"][0]["accuracy"] == 75.0
    assert [round(bound, 1) for bound in plain["tasks"][0]["interval_95"]] == [30.1, 95.4]
    assert plain["averages"] == [{"suite": "commonsense", "micro": 75.0, "macro": 75.0}]
    assert plain["settings"] == {"seed": 1}
    assert plain["notes"] == ["note"]
