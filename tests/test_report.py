"""The report's page without a browser: figures, packing, escaping, and what it says of itself."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import random
import re
import shutil
import statistics
import time
from collections import Counter
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import escape

from rosa.cli.main import main
from rosa.errors import RosaError
from rosa.study.compare.results import RESULTS, RunResult, StudyResults
from rosa.study.report import examples, training, write_report
from rosa.study.report.axes import Axis, fit, fit_percent, short
from rosa.study.report.costs import digits, duration, size
from rosa.study.report.page import PLAIN_BYTES, pack_data, render, visible
from rosa.study.report.scatter import label_box, overlap, place_labels
from rosa.study.report.summary import protocol, sentence
from rosa.study.report.tables import chapters
from rosa.study.tables import captions
from rosa.study.tables.parts import parts
from tests.report_study import NASTY, rich_study, spoil

VOID = {"meta", "link", "br", "input", "img", "hr"}
finite = st.floats(-1e6, 1e6, allow_subnormal=False)


class Reader(HTMLParser):
    """What a page is made of: tags, attributes, the text of scripts; whether tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        else:
            self.texts.append(data)


def unpack(html: str) -> dict[str, Any]:
    """The page's data, as its script reads them."""
    ((attrs, text),) = [s for s in Reader(html).scripts if s[0].get("id") == "answers"]
    if attrs["type"] == "application/gzip":
        text = gzip.decompress(base64.b64decode(text)).decode()
    return json.loads(text)


def answers(data: dict[str, Any], run: RunResult, task: str) -> list[tuple[Any, ...]]:
    """(index, prompt, label, prediction, response, right) of one run, from the page's data."""
    number = [t["name"] for t in data["tasks"]].index(task)
    about = data["tasks"][number]
    (packed,) = [
        r["answers"][str(number)]
        for r in data["runs"]
        if data["groups"][r["group"]] == {"model": run.model, "train_set": run.train_set}
        and data["methods"][r["method"]]["name"] == run.method
        and data["seeds"][r["seed"]] == run.seed
    ]
    rows = packed.get("rows", range(len(about["prompt"])))
    responses = packed.get("response", [-1] * len(rows))
    text = dict(enumerate(about["texts"]))
    return [
        (
            about["index"][row],
            about["prefix"] + about["prompt"][row] + about["suffix"],
            about["label"][row],
            text.get(prediction),
            text.get(response),
            right == "1",
        )
        for row, prediction, response, right in zip(
            rows, packed["prediction"], responses, packed["right"], strict=True
        )
    ]


def on_disk(study: StudyResults, run: RunResult, task: str) -> list[tuple[Any, ...]]:
    file = study.folder / run.folder / "evaluation" / f"{task}.jsonl"
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    keys = ("index", "prompt", "label", "prediction", "response", "correct")
    return sorted(tuple(line[key] for key in keys) for line in lines)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    return rich_study(tmp_path_factory.mktemp("study"), failed=[("lora", 2)], examples=12)


@pytest.fixture(scope="module")
def html(study: StudyResults) -> str:
    return render(study)


# ---- tables ---------------------------------------------------------------------------------


def test_a_cell_is_the_mean_and_sample_deviation_over_seeds(study: StudyResults) -> None:
    (block,) = chapters(study)[0].blocks
    assert (block.model, block.train_set, block.suite) == ("rosa-tiny",) + ("commonsense",) * 2
    assert [c.name for c in block.columns] == ["micro", "macro", "boolq", "piqa"]
    row = next(row for row in block.rows if row.method == "rosa")
    runs = study.select(method="rosa", train_set="commonsense")
    for cell, values in zip(
        row.cells,
        (
            [run.micro("commonsense") for run in runs],
            [run.macro("commonsense") for run in runs],
            [run.accuracy("boolq") for run in runs],
            [run.accuracy("piqa") for run in runs],
        ),
        strict=True,
    ):
        assert cell.mean == pytest.approx(sum(values) / 3)
        assert cell.std == pytest.approx(statistics.stdev(values))
    printed = f"{row.cells[0].mean:.1f}"
    assert f"{printed}</b>" in render(study) or row.cells[0].place != 1


def test_best_and_second_go_by_what_is_printed(study: StudyResults) -> None:
    for block in (block for chapter in chapters(study) for block in chapter.blocks):
        for i in range(len(block.columns)):
            places = {row.cells[i].place: round(row.cells[i].mean, 1) for row in block.rows}
            means = sorted({round(row.cells[i].mean, 1) for row in block.rows}, reverse=True)
            assert (places[1], places[2]) == (means[0], means[1])


def test_a_method_that_lacks_a_seed_is_named(study: StudyResults, html: str) -> None:
    row = next(row for row in chapters(study)[0].blocks[0].rows if row.method == "lora")
    assert len(row.runs) == 2
    assert "‡ LoRA: 2 of 3 seeds; seed 2 " in html
    assert "out of memory on purpose" in html
    assert "22 of 24 runs have finished." in html
    assert "2\n    runs failed" in html or "2 runs failed" in html


def test_stars_and_notes_are_those_of_the_tables(study: StudyResults, html: str) -> None:
    for part, chapter in zip(parts(study), chapters(study), strict=True):
        (block,) = chapter.blocks
        for row in block.rows:
            stars = [cell.star is not None for cell in row.cells]
            assert stars == [part.star(block.model, row.method)] + [False] * (len(stars) - 1)
        assert captions.star(part) in chapter.notes
        assert str(escape(captions.star(part))) in html
        for d in part.all_differences:
            assert f"{d.difference:+.1f}".replace("-", "−") in html


def test_questions_seen_in_training_are_marked_as_the_check_found_them(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"math": ["MultiArith", "gsm8k"]}, examples=4)
    titles = [column.title for column in chapters(study)[0].blocks[0].columns]
    assert titles[2:] == ["MultiArith", "GSM8K"]
    checked = {"math": {"MultiArith": {"matches": 3, "of": 4}, "gsm8k": {"matches": 0, "of": 14}}}
    (tmp_path / "overlap.json").write_text(json.dumps(checked))
    titles = [column.title for column in chapters(study)[0].blocks[0].columns]
    assert titles[2:] == ["MultiArith †", "GSM8K"]
    assert "3 of 4 in MultiArith" in render(study)


def test_two_models_are_two_tables_with_one_set_of_notes(tmp_path: Path) -> None:
    study = rich_study(
        tmp_path, models=["tiny-a", "tiny-b"], train_sets={"commonsense": ["boolq"]}, examples=6
    )
    (chapter,) = chapters(study)
    assert [block.model for block in chapter.blocks] == ["tiny-a", "tiny-b"]
    html = render(study)
    assert html.count("Micro avg. is over all examples") == 1
    assert Reader(html).open == []


# ---- axes and plots -------------------------------------------------------------------------


@given(st.lists(finite, min_size=1, max_size=20))
def test_a_fitted_axis_shows_every_value_and_round_ticks(values: list[float]) -> None:
    axis = fit(values)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    ticks = axis.ticks()
    assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in ticks)
    assert 2 <= len(ticks) <= 11


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20))
def test_a_logarithmic_axis_does_too(values: list[float]) -> None:
    axis = fit(values, log=True)
    assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in values)
    assert all(-1e-9 <= tick.at <= 1 + 1e-9 for tick in axis.ticks())


def test_ticks_are_round() -> None:
    assert [t.text for t in Axis(0, 100).ticks()] == ["0", "20", "40", "60", "80", "100"]
    assert [t.text for t in Axis(1e3, 1e6, True).ticks()] == ["1k", "10k", "100k", "1M"]
    assert [t.text for t in Axis(50.3, 70.1).ticks()] == ["55", "60", "65", "70"]
    assert short(1_234_567) == "1.23M"


def test_an_axis_of_accuracies_neither_blows_up_noise_nor_leaves_0_to_100() -> None:
    axis, ticks = fit_percent([0.0, 0.0])
    assert axis.high - axis.low >= 4
    assert min(tick.value for tick in ticks) == 0
    axis, ticks = fit_percent([99.8, 100.0])
    assert max(tick.value for tick in ticks) == 100
    assert axis.at(100.0) < 1


@given(
    st.lists(st.tuples(st.floats(45, 400), st.floats(30, 260)), min_size=1, max_size=25),
    st.integers(1, 14),
)
def test_labels_cover_neither_each_other_nor_a_dot(
    places: list[tuple[float, float]], length: int
) -> None:
    names = ["n" * length] * len(places)
    found = place_labels(names, [(x, y, 4.0) for x, y in places])
    boxes = [label_box(label, "n" * length) for label in found if label]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert not any(overlap(box, (x - 4, y - 4, x + 4, y + 4)) for box in boxes for x, y in places)


def test_units() -> None:
    assert [duration(s) for s in (0.02, 82, 210, 7560)] == [
        "20.0 ms",
        "82.0 s",
        "3.50 min",
        "2.10 h",
    ]
    assert [size(b) for b in (12, 200_000, 7.5e8, 2e10)] == ["12 B", "200 kB", "750 MB", "20.0 GB"]
    assert [digits(v) for v in (0.3, 12, 250, 1e-9)] == ["0.300", "12.0", "250", "1e-09"]


# ---- training -------------------------------------------------------------------------------


def test_layer_shares_count_the_choices(study: StudyResults) -> None:
    (_, _, methods), _ = training.layers(study)
    assert [m.title for m in methods] == ["RoSA", "RoSA-RoAEonly"]
    runs = study.select(method="rosa", train_set="commonsense")
    lines = [
        json.loads(line)
        for run in runs
        for line in (study.folder / run.folder / "dls_history.jsonl").read_text().splitlines()
    ]
    counts = Counter(layer for line in lines for layer in line["selected"])
    assert methods[0].shares == pytest.approx([100 * counts[i] / len(lines) for i in range(6)])
    first = methods[0].maps[0]
    chosen = sum(path.count("M") for kind, path in first.paths if kind[0] == "c")
    passed = sum(path.count("M") for kind, path in first.paths if kind[0] == "n")
    assert (chosen, passed) == (20 * 3, 20 * 3)
    assert len(first.explored) == sum(line["mode"] == "explore" for line in lines[:20])


def test_curves_leave_out_what_is_no_number(study: StudyResults, html: str) -> None:
    (first, _) = training.losses(study)
    assert [len(panel.curves) for panel in first.panels] == [2, 3, 3, 3]
    assert all(curve.path.count(",") == 39 for panel in first.panels for curve in panel.curves)
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', html))


def test_long_curves_are_thinned_with_their_ends() -> None:
    points = [(float(i), float(i)) for i in range(5000)]
    kept = training.thin(points, 120)
    assert len(kept) == 120
    assert (kept[0], kept[-1]) == (points[0], points[-1])


# ---- examples -------------------------------------------------------------------------------


def test_the_page_holds_every_answer(study: StudyResults, html: str) -> None:
    data = unpack(html)
    for run in study.runs:
        for score in run.scores:
            assert answers(data, run, score.name) == on_disk(study, run, score.name)


def test_large_data_are_compressed_and_the_same(tmp_path: Path) -> None:
    data = {"text": "</script>é\ud83d" * PLAIN_BYTES}
    packed = pack_data(data)
    assert packed.kind == "application/gzip"
    assert json.loads(gzip.decompress(base64.b64decode(packed.text))) == data
    small = pack_data({"text": "</script>é\ud83d"})
    assert small.kind == "application/json"
    assert "<" not in small.text
    assert json.loads(small.text) == {"text": "</script>é\ud83d"}


def test_above_the_limit_only_first_seeds_keep_responses(study: StudyResults) -> None:
    every = examples.gather(study)
    assert every.kept == "all"
    one = examples.gather(study, limit_mb=every.megabytes * 0.99)
    none = examples.gather(study, limit_mb=0)
    assert (one.kept, none.kept) == ("first", "none")
    for found, kept in ((one, [1, 1, 1, 1]), (none, [])):
        runs = [r for r in found.data["runs"] if r["group"] == 0]
        seeds = [r["seed"] + 1 for r in runs if "response" in r["answers"][0]]
        assert seeds == kept
        assert all(len(r["answers"][0]["right"]) == 12 for r in runs)


def test_the_page_says_whose_responses_it_has(study: StudyResults) -> None:
    most = examples.gather(study).megabytes
    assert "and response." in render(study)
    text = " ".join(render(study, limit_mb=0.99 * most).split())
    assert "responses are those of each method's first seed" in text
    assert "responses are left out" in render(study, limit_mb=0)


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
    prefix, suffix = examples.common_ends(prompts)
    assert not prefix or prefix.endswith("\n")
    assert not suffix or suffix.startswith("\n")
    for prompt in prompts:
        middle = prompt[len(prefix) : len(prompt) - len(suffix)]
        assert prefix + middle + suffix == prompt


def test_a_damaged_answer_is_named(tmp_path: Path) -> None:
    study = rich_study(tmp_path, train_sets={"commonsense": ["boolq"]}, seeds=[1], examples=4)
    file = study.folder / study.runs[0].folder / "evaluation" / "boolq.jsonl"
    file.write_text(file.read_text() + '{"index": 4}\n')
    with pytest.raises(RosaError, match=r"boolq\.jsonl, row 5 is no answer"):
        render(study)


# ---- the page -------------------------------------------------------------------------------


def test_the_page_is_sound_and_asks_for_nothing(html: str) -> None:
    page = Reader(html)
    assert page.open == []
    assert page.tags["h1"] == page.tags["main"] == 1
    loading = {"src", "srcset", "data", "action", "poster", "background"}
    assert not [a for a in page.attributes if a[1] in loading or a[1].startswith("on")]
    links = [value for _, name, value in page.attributes if name in ("href", "xlink:href")]
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert links
    assert all(link and link[0] == "#" and link[1:] in ids for link in links)
    assert not re.search(r"@import|url\(", html)


def test_the_policy_lets_our_scripts_run_and_nothing_else(html: str) -> None:
    page = Reader(html)
    (policy,) = [v for t, n, v in page.attributes if (t, n) == ("meta", "content") and "src" in v]
    scripts = [text for attrs, text in page.scripts if "type" not in attrs]
    assert len(scripts) == 2
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_nothing_of_the_study_becomes_markup(tmp_path: Path) -> None:
    clean = rich_study(tmp_path, examples=8)
    plain = Reader(render(dataclasses.replace(clean, failures=({"run": "a", "error": "b"},) * 7)))
    study = spoil(clean)
    path = write_report(study, tmp_path / "report.html")
    html = path.read_text(encoding="utf-8")
    page = Reader(html)
    assert page.open == []
    for tags in (page.tags, plain.tags):
        del tags["text"], tags["line"]  # longer names find less room in a plot
    assert page.tags == plain.tags
    data = unpack(html)
    for run in study.runs:
        for score in run.scores:
            assert answers(data, run, score.name) == on_disk(study, run, score.name)
    said = "".join(page.texts)
    for text in NASTY:
        shown = visible(text).encode("utf-8", "xmlcharrefreplace").decode()
        assert re.sub(r"&#\d+;", "\ufffd", shown) in said
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)


@given(st.text())
def test_visible_text_has_no_control_characters(text: str) -> None:
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
    page = Reader(render(bare))
    assert page.open == []
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {"results", "plots"} <= ids
    assert not {"costs", "losses", "layers", "examples", "tuning", "failures"} & ids
    assert sentence(bare) == "1 method on rosa-tiny, trained on commonsense, with 1 seed each."


def test_failures_alone_are_a_page_and_nothing_is_none(tmp_path: Path) -> None:
    failed = StudyResults(tmp_path, (), ({"run": "a/b/1", "error": "it broke"},))
    assert "it broke" in render(failed)
    with pytest.raises(RosaError, match="has no run"):
        render(StudyResults(tmp_path, ()))


def test_tuning_without_a_loss_is_shown(tmp_path: Path, study: StudyResults) -> None:
    record = {**study.tuning[0], "losses": {"0.001": None, "0.0003": None}, "chosen": None}
    html = render(dataclasses.replace(study, tuning=(record,)))
    section = html[html.index('id="tuning"') : html.index('id="failures"')]
    assert section.count("number none") == 2


def test_the_protocol_is_that_of_the_evaluation(study: StudyResults) -> None:
    assert protocol(study) == "llm-adapters, greedy, all questions"
    file = study.folder / study.runs[0].folder / "evaluation" / "run.json"
    asked = {"protocol": "strict", "num_beams": 4, "limit": 50, "dtype": "float32"}
    file.write_text(json.dumps(asked))
    try:
        assert protocol(study) == ("strict, 4 beams, a sample of 50 questions per task, float32")
        file.write_text(json.dumps({"protocol": "llm-adapters", "full_responses": False}))
        told = "llm-adapters, greedy, responses up to their answer, all questions"
        assert protocol(study) == told
    finally:
        file.unlink()


# ---- the command ----------------------------------------------------------------------------


def test_the_command_writes_beside_the_results(
    study: StudyResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(study.folder)]) == 0
    written = study.folder / "report.html"
    assert capsys.readouterr().out == f"{written}\n"
    assert written.read_text(encoding="utf-8") == render(StudyResults.load(study.folder))
    assert main(["report", str(study.folder), "--out", str(tmp_path / "new" / "a.html")]) == 0
    assert (tmp_path / "new" / "a.html").is_file()
    assert not list(study.folder.glob("*.part"))


def test_the_command_refuses_in_one_sentence(
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


@pytest.mark.slow
def test_a_large_study_takes_seconds(tmp_path: Path) -> None:
    study = large_study(tmp_path)
    start = time.process_time()
    path = write_report(study, tmp_path / "report.html")
    assert time.process_time() - start < 10  # about 5 on an idle core
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
