"""The report's page without a browser: sound, closed, escaped, and what it says of itself."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest

from rosa.cli.main import main
from rosa.common.formatting import visible
from rosa.compare.results import RESULTS, StudyResults
from rosa.errors import RosaError
from rosa.report.html import page
from rosa.report.html.head import summary
from rosa.report.html.page import render
from rosa.report.tables.captions import protocol
from tests.support.report_page import Reader, answers, on_disk, unpack
from tests.support.report_study import NASTY, rich_study


def test_the_page_is_sound_and_asks_for_nothing(html: str) -> None:
    read = Reader(html)
    assert read.open == []
    assert read.tags["h1"] == read.tags["main"] == 1
    loading = {"src", "srcset", "data", "action", "poster", "background"}
    assert not [a for a in read.attributes if a[1] in loading or a[1].startswith("on")]
    links = [value for _, name, value in read.attributes if name in ("href", "xlink:href")]
    ids = {value for _, name, value in read.attributes if name == "id"}
    images = [link for link in links if link and link.startswith("data:image/png;base64,")]
    assert images
    assert len(links) > len(images)
    assert all(link in images or (link and link[0] == "#" and link[1:] in ids) for link in links)
    assert not re.search(r"@import|url\(", html)
    assert not [a for a in read.attributes if a[1] == "style"]  # the policy forbids them
    named = [value for _, name, value in read.attributes if name == "id"]
    assert len(named) == len(ids)


def test_the_policy_lets_our_scripts_run_and_nothing_else(html: str) -> None:
    read = Reader(html)
    (policy,) = [v for t, n, v in read.attributes if (t, n) == ("meta", "content") and "src" in v]
    scripts = [text for attrs, text in read.scripts if "type" not in attrs]
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_nothing_of_the_study_becomes_markup(
    clean_and_spoiled: tuple[str, StudyResults, Path],
) -> None:
    clean, study, path = clean_and_spoiled
    plain, html = Reader(clean), path.read_text(encoding="utf-8")
    read = Reader(html)
    assert read.open == []
    for tags in (read.tags, plain.tags):
        for tag in ("text", "path", "g", "use", "defs"):  # longer names leave less room in a plot
            del tags[tag]
    assert read.tags == plain.tags
    data = unpack(html)
    for run in study.runs:
        for score in run.scores:
            assert answers(data, run, score.name) == on_disk(study, run, score.name)
    said = "".join(read.texts)
    for text in NASTY:
        shown = visible(text).encode("utf-8", "xmlcharrefreplace").decode()
        assert re.sub(r"&#\d+;", "\ufffd", shown) in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)


def test_visible_text_has_no_control_characters() -> None:
    text = "".join(map(chr, range(0x3000)))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", visible(text))
    assert len(visible(text)) == len(text)


def test_a_study_of_one_run_and_nothing_else(tmp_path: Path) -> None:
    study = rich_study(
        tmp_path,
        skills={"rosa": 0.7},
        train_sets={"commonsense": ["boolq"]},
        seeds=[5],
        examples=3,
    )
    shutil.rmtree(tmp_path / "runs")
    bare = dataclasses.replace(study, tuning=(), environment={}, grid={})
    bare = dataclasses.replace(bare, runs=(dataclasses.replace(study.runs[0], costs={}),))
    read = Reader(render(bare))
    assert read.open == []
    ids = {value for _, name, value in read.attributes if name == "id"}
    assert {"results", "plots"} <= ids
    assert not {"costs", "losses", "layers", "examples", "tuning", "failures"} & ids
    assert summary(bare) == "1 method on rosa-tiny, trained on commonsense, with 1 seed each."


def test_failures_alone_are_a_page_and_nothing_is_none(tmp_path: Path) -> None:
    failed = StudyResults(tmp_path, (), ({"run": "a/b/1", "error": "it broke"},))
    assert "it broke" in render(failed)
    with pytest.raises(RosaError, match="has no run"):
        render(StudyResults(tmp_path, ()))


@pytest.mark.usefixtures("no_plots")
def test_tuning_without_a_loss_is_shown(tmp_path: Path, study: StudyResults) -> None:
    record = {**study.tuning[0], "losses": {"0.001": None, "0.0003": None}, "chosen": None}
    html = render(dataclasses.replace(study, tuning=(record,)))
    section = html[html.index('id="tuning"') : html.index('id="failures"')]
    assert section.count("number none") == 2


def test_the_protocol_is_that_of_the_evaluation(study: StudyResults) -> None:
    assert protocol(study) == "llm-adapters, greedy decoding"
    file = study.folder / study.runs[0].folder / "evaluation" / "run.json"
    asked = {"protocol": "strict", "num_beams": 4, "limit": 50, "dtype": "float32"}
    file.write_text(json.dumps(asked))
    try:
        assert protocol(study) == "strict, 4 beams, a sample of 50 examples per task, float32"
        file.write_text(json.dumps({"protocol": "llm-adapters", "full_responses": False}))
        expected = "llm-adapters, greedy decoding, responses cut after their answer"
        assert protocol(study) == expected
    finally:
        file.unlink()


@pytest.mark.usefixtures("no_plots")
def test_the_same_study_makes_the_same_page(study: StudyResults) -> None:
    assert render(StudyResults.load(study.folder)) == render(study)


def test_the_command_writes_where_it_is_told(
    study: StudyResults,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page, "render", lambda *_, **__: "a page")
    assert main(["report", str(study.folder), "--out", str(tmp_path / "new" / "a.html")]) == 0
    assert (tmp_path / "new" / "a.html").read_text() == "a page"
    assert written.is_file()
    assert not list(study.folder.glob("*.part"))


@pytest.mark.usefixtures("no_plots")
def test_the_command_reports_a_mistake_in_one_sentence(
    study: StudyResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, said in (
        ([str(tmp_path)], "holds no study"),
        ([str(study.folder), "--out", str(tmp_path)], "is a folder"),
        ([str(study.folder), "--max_mb", "-1"], "--max_mb must be at least 0"),
        ([str(study.folder), "--max_mb", "nan"], "expected a float"),
        ([str(study.folder), "--out", str(study.folder / RESULTS / "a.html")], "cannot write"),
    ):
        assert main(["report", *argv]) == 2
        assert said in capsys.readouterr().err
