"""An adapter's scores beside its base model's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rosa.common.tables.render import terminal
from rosa.compare.base_model import base_table, check_base_results
from rosa.errors import RosaError
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.results import Results
from rosa.evaluate.tasks import built_in_tasks

RUN = {"protocol": "llm-adapters", "model": "rosa-tiny", "num_beams": 1, "dtype": "float32"}


def scored(folder: Path, answers: dict[str, list[bool]], hash: str = "h", **run: object) -> Path:
    """An evaluation's folder in which these answers are right."""
    files = EvaluationFolder(folder)
    files.claim({**RUN, "adapter": None, **run}, dict.fromkeys(answers, hash))
    scores = []
    for name, right in answers.items():
        records = [{"index": i, "correct": r, "prediction": "1"} for i, r in enumerate(right)]
        files.write_answers(name, records[::-1])  # their order is that of their lengths
        scores.append(built_in_tasks()[name].score(records, len(records)))
    files.write_results(Results(scores))
    return folder


def test_the_table_by_hand(tmp_path: Path) -> None:
    base = scored(tmp_path / "base", {"tiny-sums": [True] + [False] * 9, "boolq": [True] * 4})
    right = {"tiny-sums": [True] * 6 + [False] * 4, "boolq": [True] * 4}
    adapter = scored(tmp_path / "adapter", right, adapter="runs/x")
    rows = base_table(base, adapter).rows
    assert [[c.value for c in row.cells[:4]] for row in rows] == [
        [10, 10, 60, 50],
        [4, 100, 100, 0],
    ]
    assert rows[1].cells[4].value == "+0.0 to +0.0"
    low, high = (float(part) for part in str(rows[0].cells[4].value).split(" to "))
    assert low < 50 < high  # five of ten questions are gained
    assert "+50.0" in terminal(base_table(base, adapter))


def test_tasks_with_other_questions_and_other_precisions_are_named(tmp_path: Path) -> None:
    base = scored(tmp_path / "base", {"boolq": [True]}, dtype="bfloat16")
    adapter = scored(tmp_path / "adapter", {"boolq": [True], "gsm8k": [True]}, adapter="x")
    table = base_table(base, adapter)
    assert len(table.rows) == 1
    assert [note.split()[0] for note in table.notes] == ["GSM8K:", "The"]
    assert "bfloat16" in table.notes[1]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hash": "other"}, "no task with the same questions"),
        ({"protocol": "strict"}, "protocol strict"),
        ({"model": "Qwen/Qwen2.5-7B"}, "scores of Qwen/Qwen2.5-7B"),
        ({"adapter": "runs/y"}, "scores of the adapter runs/y"),
    ],
)
def test_what_cannot_be_compared_is_an_error(
    tmp_path: Path, change: dict[str, str], complaint: str
) -> None:
    base = scored(tmp_path / "base", {"boolq": [True]}, **change)
    adapter = scored(tmp_path / "adapter", {"boolq": [True]}, adapter="x")
    with pytest.raises(RosaError, match=complaint):
        base_table(base, adapter)


def test_a_folder_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RosaError, match=r"no results\.json"):
        check_base_results(tmp_path, "rosa-tiny")


def test_the_base_is_the_same_under_its_name_and_its_path(tmp_path: Path) -> None:
    import rosa

    base = scored(tmp_path / "base", {"boolq": [True]})
    check_base_results(base, str(rosa.tiny_model_path()))
    assert json.loads((base / "run.json").read_text())["model"] == "rosa-tiny"
