"""The answers in the report's page: all there, unchanged, packed, also of a large study."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import random
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.compare.results import StudyResults
from rosa.errors import RosaError
from rosa.report.html import questions, write_report
from rosa.report.html.page import PLAIN_BYTES, pack_data, render
from tests.support.report_page import answers, on_disk, unpack
from tests.support.report_study import rich_study


def test_the_page_holds_every_answer(study: StudyResults, html: str) -> None:
    data = unpack(html)
    for run in study.runs:
        for score in run.scores:
            assert answers(data, run, score.name) == on_disk(study, run, score.name)


def test_large_data_are_compressed_and_the_same(tmp_path: Path) -> None:
    data = {"text": "</script>é\ud83d" * PLAIN_BYTES}
    kind, packed = pack_data(data)
    assert kind == "application/gzip"
    assert json.loads(gzip.decompress(base64.b64decode(packed))) == data
    kind, small = pack_data({"text": "</script>é\ud83d"})
    assert kind == "application/json"
    assert "<" not in small
    assert json.loads(small) == {"text": "</script>é\ud83d"}


def test_above_the_limit_only_first_seeds_keep_responses(study: StudyResults) -> None:
    every = questions.gather(study)
    assert every.kept == "all"
    one = questions.gather(study, limit_mb=every.megabytes * 0.99)
    none = questions.gather(study, limit_mb=0)
    assert (one.kept, none.kept) == ("first", "none")
    for found, kept in ((one, [1, 1, 1, 1]), (none, [])):
        runs = [r for r in found.data["runs"] if r["group"] == 0]
        seeds = [r["seed"] + 1 for r in runs if "response" in r["answers"][0]]
        assert seeds == kept
        assert all(len(r["answers"][0]["right"]) == 40 for r in runs)


@pytest.mark.usefixtures("no_plots")
def test_the_page_says_whose_responses_it_has(study: StudyResults) -> None:
    most = questions.gather(study).megabytes
    assert "and response." in render(study)
    text = " ".join(render(study, limit_mb=0.99 * most).split())
    assert "responses are those of each method's first seed" in text
    assert "responses are left out" in render(study, limit_mb=0)


@pytest.mark.usefixtures("no_plots")
def test_runs_that_were_asked_other_questions_keep_their_own(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"commonsense": ["boolq"]}, seeds=[1], examples=9)
    run = study.runs[0]
    file = study.folder / run.folder / "evaluation" / "boolq.jsonl"
    lines = file.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["prompt"] = "the same index, another prompt"
    file.write_text("\n".join([*lines[5:], json.dumps(changed), lines[0]]) + "\n")
    data = unpack(render(study))
    assert len(data["tasks"][0]["prompt"]) == 10
    for other in study.runs:
        assert sorted(answers(data, other, "boolq")) == on_disk(study, other, "boolq")


@given(st.lists(st.text("ab\n", max_size=12), min_size=1, max_size=6))
def test_common_ends_are_whole_lines_that_all_prompts_have(prompts: list[str]) -> None:
    prefix, suffix = questions.common_ends(prompts)
    assert not prefix or prefix.endswith("\n")
    assert not suffix or suffix.startswith("\n")
    for prompt in prompts:
        middle = prompt[len(prefix) : len(prompt) - len(suffix)]
        assert prefix + middle + suffix == prompt


@pytest.mark.usefixtures("no_plots")
def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"commonsense": ["boolq"]}, seeds=[1], examples=4)
    file = study.folder / study.runs[0].folder / "evaluation" / "boolq.jsonl"
    file.write_text(file.read_text() + '{"index": 4}\n')
    with pytest.raises(RosaError, match=r"boolq\.jsonl, row 5 is not an answer"):
        render(study)


@pytest.mark.slow
def test_five_times_the_runs_take_five_times_as_long(tmp_path: Path) -> None:
    study, path = large_study(tmp_path), tmp_path / "report.html"

    def seconds(of: StudyResults) -> float:
        start = time.process_time()
        write_report(of, path)
        return time.process_time() - start

    fifth = dataclasses.replace(study, runs=study.runs[: len(study.runs) // 5])
    small = min(seconds(fifth) for _ in range(3))
    assert seconds(study) < 15 * small  # 25, were it to grow with the square
    assert path.stat().st_size < 20e6
    data = unpack(path.read_text(encoding="utf-8"))
    run = study.runs[77]
    assert answers(data, run, "gsm8k") == on_disk(study, run, "gsm8k")


def large_study(folder: Path) -> StudyResults:
    """25 methods x 5 seeds x 500 examples, prompts and responses as long as gsm8k's."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
    small = rich_study(
        folder, train_sets={"math": ["gsm8k"]}, seeds=range(5), examples=500, layers=28, choices=70
    )
    runs = []
    for number in range(25):
        for run in small.select(method=("lora", "rosa")[number % 2]):
            runs.append(dataclasses.replace(run, method=f"m{number}", title=f"Method {number}"))
            runs[-1] = dataclasses.replace(runs[-1], folder=f"runs/m{number}/{run.seed}")
            shutil.copytree(folder / run.folder, folder / runs[-1].folder)
            file = folder / runs[-1].folder / "evaluation" / "gsm8k.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                row["prompt"] = row["prompt"] + " ".join(words[:60])
                row["response"] = " ".join(rng.choices(words, k=120))
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(small, runs=tuple(runs), tuning=())
