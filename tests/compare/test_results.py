"""What a study says is read back as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rosa.compare.results import StudyResults
from rosa.errors import RosaError
from tests.support.synthetic_study import synthetic_study


def test_results_survive_their_file(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path)
    again = StudyResults.load(tmp_path)
    assert again == study


def test_averages_weigh_examples_and_tasks(tmp_path: Path) -> None:
    run = synthetic_study(tmp_path).runs[0]
    right, asked = (sum(getattr(s, k) for s in run.scores) for k in ("correct", "scored"))
    assert run.micro() == pytest.approx(100 * right / asked)
    assert run.macro() == pytest.approx(
        sum(run.accuracy(s.name) for s in run.scores) / len(run.scores)
    )


def test_answers_with_every_kind_of_line_break(tmp_path: Path) -> None:
    study = synthetic_study(tmp_path)
    run, task = study.runs[0], study.runs[0].scores[0].name
    file = tmp_path / run.folder / "evaluation" / f"{task}.jsonl"
    record = {"index": 7, "response": "a\u2028b\u0085c\x0bd\n", "correct": True}
    file.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert study.answers(run, task) == [record]
    assert study.correct(run, task) == {7: True}


@pytest.mark.parametrize("content", ["{", "[]", '{"runs": [{}]}', '{"runs": [{"scores": 3}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RosaError, match=r"results\.json cannot be read"):
        StudyResults.load(tmp_path)


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(RosaError, match="holds no study"):
        StudyResults.load(tmp_path)
