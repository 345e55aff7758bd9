"""docs/guides/evaluating.md: its example runs, and what it says about the tasks is so."""

from __future__ import annotations

import re
from pathlib import Path

from rosa.cli.evaluate import build_parser
from rosa.cli.main import main
from rosa.data.prompts import PROMPTS
from rosa.evaluate.answers import PROTOCOLS
from rosa.evaluate.tasks import built_in_tasks, load_task
from tests.support.tiny_folder import write_model_folder

PAGE = (Path(__file__).parents[2] / "docs" / "guides/evaluating.md").read_text(encoding="utf-8")


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


def test_the_page_names_every_task_and_those_without_a_hub_source():
    for task in built_in_tasks().values():
        assert f"`{task.name}`" in PAGE
    (without,) = re.findall(r"exactly the rows of (.*?); these", PAGE)
    named = set(re.findall(r"`([^`]+)`", without))
    assert named == {t.name for t in built_in_tasks().values() if not (t.hub or t.packaged)}


def test_every_option_on_the_page_exists():
    own_command = re.findall(r"^\$ python -c .*$", PAGE, re.MULTILINE)
    assert len(own_command) == 1
    named = re.findall(r"--(\w+)", PAGE.replace(own_command[0], ""))
    assert set(named) <= set(build_parser().option_names)
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
    hub = load_task("boolq").hub
    assert hub is not None
    assert hub.answer in PAGE
    assert hub.instruction.replace("\n", "\\n") in PAGE
