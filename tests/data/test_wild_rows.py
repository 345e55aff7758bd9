"""Unusual rows and chat templates are read right, or are an error that names the row."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import AutoTokenizer

import rosa
from rosa.data.prompts import Question, end_of_turn, read_question, render
from rosa.data.tokenization import check_row, tokenize_rows
from rosa.errors import RosaError
from rosa.reproduce.dry_run import token_counts

TURNS = (
    "{% for m in messages %}{{ '<|turn|>' + m['role'] + '\n' + m['content'] + '<|close|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant\n' }}{% endif %}"
)
IN_PARTS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for part in m['content'] %}{{ part['text'] }}"
    "{% endfor %}{{ '<|close|>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETS_REASONING = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if loop.last or m['role'] == 'user' %}"
    "{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1] }}{% endif %}"
    "{{ '<|close|>' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day"}]


@pytest.fixture
def tokenizer():
    found = AutoTokenizer.from_pretrained(rosa.tiny_model_path())
    found.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|close|>"]})
    found.chat_template = TURNS
    return found


def learned(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    """The text under the labels of each row that `row` becomes."""
    found = tokenize_rows([("rows.json", 1, row)], tokenizer, max_length=512)
    return [tokenizer.decode([t for t in r["labels"] if t != -100]) for r in found.rows]


@pytest.mark.parametrize(
    "nothing", [None, math.nan, "", "  \n"], ids=["null", "nan", "empty", "blank"]
)
def test_a_missing_input_is_no_input(nothing: Any, tokenizer: Any) -> None:
    row = {"instruction": "Say hi.", "input": nothing, "output": "hi"}
    without = {"instruction": "Say hi.", "output": "hi"}
    assert tokenize_rows([("f", 1, row)], tokenizer, max_length=512).rows == (
        tokenize_rows([("f", 1, without)], tokenizer, max_length=512).rows
    )
    assert read_question(row, "f", 1) == read_question(without, "f", 1)
    assert token_counts(row, "f", 1) == token_counts(without, "f", 1)


@pytest.mark.parametrize("value", [5, 0, ["a", 1], {"k": 1}, True])
def test_an_input_that_is_not_text_is_an_error_everywhere(value: Any, tokenizer: Any) -> None:
    row = {"instruction": "Say hi.", "input": value, "output": "hi"}
    for read in (
        lambda: tokenize_rows([("f.json", 7, row)], tokenizer, max_length=512),
        lambda: read_question(row, "f.json", 7),
        lambda: token_counts(row, "f.json", 7),
    ):
        with pytest.raises(RosaError, match=r"f\.json, row 7: the field 'input' must be text"):
            read()


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a\ud800", "output": "b"},
        {"instruction": "a", "input": "\udfff", "output": "b"},
        {"prompt": "a", "completion": "b\ud83d"},
        {"messages": [{"role": "user", "content": "\ud800"}, CHAT[1]]},
    ],
    ids=["instruction", "input", "completion", "messages"],
)
def test_half_a_surrogate_pair_is_named_by_row(row: dict[str, Any], tokenizer: Any) -> None:
    with pytest.raises(RosaError, match=r"f, row 3: .*surrogate"):
        tokenize_rows([("f", 3, row)], tokenizer, max_length=512)


def test_the_token_that_closes_a_turn_is_found(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|close|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}"
    assert end_of_turn(tokenizer) is None


def test_a_template_that_reads_content_in_parts_has_prompts_and_an_end_of_turn(
    tokenizer: Any,
) -> None:
    tokenizer.chat_template = "<|turn|>" + IN_PARTS
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == "<|close|>"
    assert "2+3=" in render("chat", Question("2+3="), tokenizer=tokenizer)


def test_a_template_that_reads_content_in_parts_keeps_the_reply(tokenizer: Any) -> None:
    tokenizer.chat_template = IN_PARTS
    assert learned(tokenizer, {"messages": CHAT}) == ["Good day<|close|>"]


def test_content_in_parts_is_text(tokenizer: Any) -> None:
    parts = [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "Good day"}]}]
    assert learned(tokenizer, {"messages": parts}) == learned(tokenizer, {"messages": CHAT})
    image = [{"role": "user", "content": [{"type": "image", "url": "x.png"}]}, CHAT[1]]
    with pytest.raises(RosaError, match="images are not supported"):
        learned(tokenizer, {"messages": image})


def test_a_template_that_drops_the_reply_is_an_error(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}<|close|>{% endfor %}"
    with pytest.raises(RosaError, match="row 1: the chat template leaves out"):
        learned(tokenizer, {"messages": CHAT})


def test_replies_of_a_template_that_rewrites_earlier_turns_become_rows(tokenizer: Any) -> None:
    tokenizer.chat_template = FORGETS_REASONING
    first = {"role": "assistant", "content": "<think>so</think>Good day"}
    rows = learned(tokenizer, {"messages": [CHAT[0], first, CHAT[0], CHAT[1]]})
    assert rows == ["<think>so</think>Good day<|close|>", "Good day<|close|>"]


def test_tools_reach_the_template_or_are_an_error(tokenizer: Any) -> None:
    row = {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "add"}}]}
    with pytest.raises(RosaError, match="no place for `tools`"):
        learned(tokenizer, row)
    tokenizer.chat_template = "{{ 'tools: ' + tools | tojson if tools else '' }}" + TURNS
    (found,) = tokenize_rows([("f", 1, row)], tokenizer, max_length=512).rows
    assert '"add"' in tokenizer.decode(found["input_ids"])


CALLS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% if m.content %}{{ m.content }}{% endif %}"
    "{% if 'tool_calls' in m %}{% for call in m['tool_calls'] %}{{ call['function'] | tojson }}"
    "{% endfor %}{% endif %}{{ '<|close|>' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_a_turn_that_only_calls_a_tool_is_learned(content: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = CALLS
    caller = {"role": "assistant", **content, "tool_calls": [CALL]}
    answer = {"role": "tool", "content": "2", "tool_calls": None}
    (first,) = learned(tokenizer, {"messages": [CHAT[0], caller]})
    assert "add" in first
    assert "None" not in first
    (both,) = learned(tokenizer, {"messages": [CHAT[0], caller, answer, CHAT[1]]})
    assert both == first + "Good day<|close|>"


def test_a_template_that_drops_a_tool_call_is_an_error(tokenizer: Any) -> None:
    caller = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    with pytest.raises(RosaError, match="row 1: the chat template leaves out"):
        learned(tokenizer, {"messages": [CHAT[0], caller]})


@pytest.mark.parametrize(
    ("turn", "complaint"),
    [
        ({"role": "assistant", "content": None}, "the assistant's `content` must be text"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "`content` must be text"),
        ({"role": "user", "content": 5}, "the user's `content` must be text, found 5"),
        ({"role": "assistant", "tool_calls": [{"type": "function"}]}, "`tool_calls` needs"),
        ({"role": "assistant", "tool_calls": "add"}, "`tool_calls` needs"),
    ],
)
def test_a_turn_without_text_is_an_error(turn: Any, complaint: str, tokenizer: Any) -> None:
    with pytest.raises(RosaError, match=f"row 1: .*{complaint}"):
        learned(tokenizer, {"messages": [CHAT[0], turn, *CHAT]})


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "answer": "b"},
        {"instruction": "a", "output": " "},
        {"messages": [CHAT[0]]},
        {"prompt": "a", "completion": 5},
    ],
)
def test_a_bad_row_is_found_without_a_tokenizer(row: Any, tokenizer: Any) -> None:
    with pytest.raises(RosaError) as early:
        check_row(row, "rows.json", 1)
    with pytest.raises(RosaError) as late:
        learned(tokenizer, row)
    assert str(early.value) == str(late.value)
