"""Training rows of every source in the forms that tokenization reads: columns and ShareGPT."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from rosa.cli.recipe_parser import load_recipe
from rosa.data.sources import check_columns, load_training_rows
from rosa.data.tokenization import IGNORE_INDEX, tokenize_rows
from rosa.errors import RosaError
from tests.support.tiny_folder import word_tokenizer

TURNS = [
    {"from": "human", "value": "How many"},
    {"from": "gpt", "value": "12"},
    {"from": "human", "value": "question"},
    {"from": "gpt", "value": "true ."},
]


def written(folder: Path, *rows: dict[str, Any]) -> str:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "rows.jsonl")


def test_the_same_rows_from_csv_parquet_and_json(tmp_path: Path) -> None:
    rows = [{"question": f"how {i}?", "reply": f"{i}", "instruction": "other"} for i in range(3)]
    text = "question,reply,instruction\n" + "".join(f"how {i}?,{i},other\n" for i in range(3))
    (tmp_path / "rows.csv").write_text(text)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    columns = {"prompt": "question", "completion": "reply"}
    # Without what belongs to another form, which tokenization would take instead.
    expected = [{"prompt": f"how {i}?", "completion": f"{i}"} for i in range(3)]
    names = [written(tmp_path, *rows), str(tmp_path / "rows.csv"), str(tmp_path / "rows.parquet")]
    for name in names:
        assert load_training_rows(name, columns) == expected


def test_a_column_that_is_not_mapped_has_its_own_name(tmp_path: Path) -> None:
    name = written(tmp_path, {"instruction": "a", "input": "b", "reply": "c", "output": "wrong"})
    [row] = load_training_rows(name, {"output": "reply"})
    assert row == {"instruction": "a", "input": "b", "output": "c"}


def test_a_missing_column_is_named_with_those_that_exist(tmp_path: Path) -> None:
    name = written(tmp_path, {"question": "a", "reply": "b"})
    complaint = "no column 'answer', which columns.output names; its columns are question, reply"
    with pytest.raises(RosaError, match=re.escape(complaint)):
        load_training_rows(name, {"instruction": "question", "output": "answer"})


def test_columns_of_two_forms_are_an_error() -> None:
    check_columns({"instruction": "q", "output": "a"})
    with pytest.raises(RosaError, match="instruction, completion are not fields of one form"):
        check_columns({"instruction": "q", "completion": "a"})


def test_columns_on_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{model: m, data: d, output_dir: o, columns: {instruction: q, output: a}}")
    found = load_recipe(str(recipe), "--columns.output", "reply", "--columns.input", "context")
    assert found.columns == {"instruction": "q", "output": "reply", "input": "context"}
    with pytest.raises(RosaError, match=r"no option --columns\.outptu \(did you mean"):
        load_recipe(str(recipe), "--columns.outptu", "reply")


def test_sharegpt_rows_are_conversations(tmp_path: Path) -> None:
    """Every turn of `gpt` is learned, as with the same turns as `messages`."""
    name = written(tmp_path, {"conversations": TURNS, "system": "the .", "id": 7})
    [row] = load_training_rows(name)
    roles = ["system", "user", "assistant", "user", "assistant"]
    assert [turn["role"] for turn in row["messages"]] == roles
    assert [turn["content"] for turn in row["messages"]][::2] == ["the .", "12", "true ."]
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} </s>{% endfor %}"
    [tokens] = tokenize_rows([(name, 1, row)], tokenizer, max_length=99).rows
    seen = [token for token in tokens["labels"] if token != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(seen) == ["12", "</s>", "true", ".", "</s>"]


def test_sharegpt_rows_under_another_column(tmp_path: Path) -> None:
    name = written(tmp_path, {"dialog": TURNS})
    [row] = load_training_rows(name, {"conversations": "dialog"})
    assert len(row["messages"]) == 4


def test_conversations_of_role_and_content_are_messages(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]
    [row] = load_training_rows(written(tmp_path, {"conversations": turns}))
    assert row == {"messages": turns}


@pytest.mark.parametrize(
    ("turns", "complaint"),
    [
        ([*TURNS, {"from": "bing", "value": "x"}], "has a turn from 'bing'; turns are from human,"),
        ([{"from": "human", "text": "x"}], "must be a list of {from, value} texts"),
        ("human: hi", "must be a list of {from, value} texts"),
        (["hi"], "must be a list of {from, value} texts"),
    ],
)
def test_what_is_not_sharegpt_is_named_with_its_row(
    turns: Any, complaint: str, tmp_path: Path
) -> None:
    name = written(tmp_path, {"conversations": TURNS}, {"conversations": turns})
    with pytest.raises(RosaError, match=re.escape(complaint)) as caught:
        load_training_rows(name)
    assert f"{name}, row 2: `conversations`" in str(caught.value)


def test_null_keys_of_a_turn_do_not_reach_the_template() -> None:
    """Parquet gives every turn every key: `tool_calls` is null where there are none."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% for t in m.get('tool_calls', []) %}{{ t }}{% endfor %}"
        "{{ m.content }} </s>{% endfor %}"
    )
    turns = [
        {"role": "user", "content": "How", "tool_calls": None},
        {"role": "assistant", "content": "12", "tool_calls": None},
    ]
    [row] = tokenize_rows([("c", 1, {"messages": turns})], tokenizer, max_length=99).rows
    seen = [token for token in row["labels"] if token != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(seen) == ["12", "</s>"]
