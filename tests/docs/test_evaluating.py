"""guides/evaluating.md and reference/tasks.md: examples run, and what they say is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rosa.cli.inspect import build_parser as inspect_parser
from rosa.cli.main import main
from rosa.data.prompts import PROMPTS
from rosa.evaluate.answer_filters import PROTOCOLS
from rosa.evaluate.tasks import built_in_tasks
from tests.docs.conftest import run_quickly
from tests.support.pages import blocks, read_page, rosa_commands, section
from tests.support.tiny_folder import write_model_folder

PAGE = read_page("guides/evaluating.md")
TASKS = read_page("reference/tasks.md")
INSPECT = "## Looking inside: `rosa inspect`"


def test_the_example_task_can_be_added_and_run(tmp_path, capsys):
    (task,) = re.findall(r"```yaml\n(# colors\.yaml\n.*?)```", PAGE, re.DOTALL)
    rows = re.findall(r'^\{"instruction".*$', PAGE, re.MULTILINE)
    (tmp_path / "colors.yaml").write_text(task)
    (tmp_path / "colors.jsonl").write_text("\n".join(rows))
    model = str(write_model_folder(tmp_path / "model"))
    words = ["--tasks", str(tmp_path / "colors.yaml"), "--out", str(tmp_path / "out")]
    assert main(["evaluate", model, *words]) == 0
    assert "Colors" in capsys.readouterr().out
    assert len((tmp_path / "out" / "colors.jsonl").read_text().splitlines()) == len(rows) == 2


def test_the_reference_names_those_without_a_hub_source():
    (without,) = re.findall(r"exactly the rows of (.*?); these", " ".join(TASKS.split()))
    named = set(re.findall(r"`([^`]+)`", without))
    assert named == {t.name for t in built_in_tasks().values() if not (t.hub or t.packaged)}


def test_every_protocol_and_prompt_is_named():
    assert all(f"`--protocol {name}`" in PAGE for name in PROTOCOLS)
    assert all(re.search(rf"\b{prompt}\b", PAGE) for prompt in PROMPTS)


def test_what_the_page_says_of_the_published_rules_is_so():
    tasks = built_in_tasks()
    said_so = re.findall(r"(AQuA|arithmetic) \|[^|]*\"(.+?)\" is read as (.+?) ", PAGE)
    assert len(said_so) == 2
    for task, said, read in said_so:
        task = "gsm8k" if task == "arithmetic" else task
        assert tasks[task].parse(said) == read
        assert tasks[task].parse(said, "strict") == said[-1]


def test_the_hub_example_is_boolqs_own():
    hub = built_in_tasks()["boolq"].hub
    assert hub is not None
    assert hub.answer in PAGE
    assert hub.instruction.replace("\n", "\\n") in PAGE


def test_the_commands_of_inspect_run(in_a_copy: Path) -> None:
    inside = section(PAGE, INSPECT)
    assert run_quickly(rosa_commands(inside)) == ["inspect", "train", "inspect"]
    files = re.findall(r"^\| `(\w+\.\w+)` \|", inside, flags=re.MULTILINE)
    made = in_a_copy / "runs" / "inspected" / "inspect"
    assert sorted(files) == sorted(file.name for file in made.iterdir())


def test_the_python_of_inspect_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(section(PAGE, INSPECT), "python")
    exec(code, {})
    assert (tmp_path / "figure1.png").is_file()


def test_every_option_of_inspect_is_named() -> None:
    named = set(re.findall(r"`--(\w+)`", section(PAGE, INSPECT)))
    assert named == set(inspect_parser().option_names) - {"help", "trust_remote_code"}
