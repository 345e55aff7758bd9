"""Tokenizing many rows at once is tokenizing them one by one; what is kept is what was made."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rosa import tiny_model_path
from rosa.data import token_cache
from rosa.data.prompts import instruction_prompt
from rosa.data.token_cache import tokenize_rows_cached
from rosa.data.tokenization import IGNORE_INDEX, LocatedRow, TokenizedRows, tokenize_rows
from rosa.errors import RosaError
from tests.support.tiny_folder import word_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer_of(name: str) -> Any:
    pieces = AutoTokenizer.from_pretrained(tiny_model_path())
    tokenizer = word_tokenizer() if name == "words" else pieces
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TOKENIZERS = {name: tokenizer_of(name) for name in ("words", "pieces")}


def one_by_one(record: dict[str, Any], tokenizer: Any) -> tuple[list[int], list[int]]:
    """The definition, text by text."""

    def without_end(ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids

    def chat(turns: Any, reply: bool) -> list[int]:
        return tokenizer.apply_chat_template(turns, add_generation_prompt=reply, return_dict=True)[
            "input_ids"
        ]

    if "messages" in record:
        messages = record["messages"]
        ids = chat(messages, False)
        labels = [IGNORE_INDEX] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                pairs = list(zip(chat(messages[:turn], True), ids, strict=False))
                start = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
                end = len(chat(messages[: turn + 1], False))
                labels[start:end] = ids[start:end]
        return ids, labels
    if "instruction" in record:
        context = record["input"] if record["input"].strip() else ""
        prompt, reply = instruction_prompt(record["instruction"], context), record["output"]
    else:
        prompt, reply = record["prompt"], record["completion"]
    before = without_end(tokenizer(prompt)["input_ids"])
    whole = without_end(tokenizer(prompt + reply)["input_ids"])
    after = whole[len(before) :]
    if whole[: len(before)] != before:
        after = tokenizer(reply, add_special_tokens=False)["input_ids"]
    after = [*after, tokenizer.eos_token_id]
    return before + after, [IGNORE_INDEX] * len(before) + after


TEXT = st.text(st.sampled_from("ab12 .\né漢😀"), max_size=12)
REPLY = TEXT.filter(str.strip)
PAIR = st.fixed_dictionaries({"prompt": TEXT, "completion": REPLY})
INSTRUCTION = st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": REPLY})
CHAT = st.lists(st.tuples(TEXT, REPLY), min_size=1, max_size=3).map(
    lambda turns: {
        "messages": [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    }
)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(records=st.lists(st.one_of(PAIR, INSTRUCTION, CHAT), max_size=8))
@settings(max_examples=40, deadline=None)
def test_many_at_once_are_the_same(name: str, records: list[dict[str, Any]]) -> None:
    tokenizer = TOKENIZERS[name]
    found = tokenize_rows(located(records), tokenizer, max_length=10_000)
    expected = [one_by_one(record, tokenizer) for record in records]
    assert [(row["input_ids"], row["labels"]) for row in found.rows] == expected


def located(records: list[dict[str, Any]]) -> list[LocatedRow]:
    return [("rows.json", number, record) for number, record in enumerate(records, 1)]


def test_the_order_is_kept_from_chunk_to_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"prompt": "How ", "completion": f"{i % 40} is"} for i in range(50)]
    whole = tokenize_rows(located(records), TOKENIZERS["words"], max_length=99)
    monkeypatch.setattr("rosa.data.tokenization.TOKENIZE_BATCH", 7)
    assert tokenize_rows(located(records), TOKENIZERS["words"], max_length=99) == whole
    records[23] = {"prompt": "x", "completion": " "}
    with pytest.raises(RosaError, match=r"rows\.json, row 24: the response is empty"):
        tokenize_rows(located(records), TOKENIZERS["words"], max_length=99)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in which every number of rows is kept."""
    monkeypatch.setenv("ROSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "MIN_CACHED_ROWS", 1)
    return tmp_path / "cache"


ROWS = located(
    [{"prompt": "the " * i, "completion": "12"} for i in range(1, 30)]
    + [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "12"}]}]
)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows whenever rows are tokenized rather than read."""
    calls: list[int] = []

    def spy(rows: Any, *args: Any, **options: Any) -> TokenizedRows:
        calls.append(len(rows))
        return tokenize_rows(rows, *args, **options)

    monkeypatch.setattr(token_cache, "tokenize_rows", spy)
    return calls


def test_what_is_kept_is_what_was_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    tokenizer = TOKENIZERS["words"]
    expected = tokenize_rows(ROWS, tokenizer, max_length=20, overlong="drop")
    for _ in range(2):
        assert tokenize_rows_cached(ROWS, tokenizer, max_length=20, overlong="drop") == expected
    assert len(calls) == 1
    assert expected.dropped
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_anything_that_decides_the_tokens_makes_another_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    tokenizer = tokenizer_of("words")
    tokenize_rows_cached(ROWS, tokenizer, max_length=20)
    tokenize_rows_cached(ROWS, tokenizer, max_length=21)
    tokenize_rows_cached(ROWS, tokenizer, max_length=20, train_on_prompt=True)
    tokenize_rows_cached(ROWS[:-1], tokenizer, max_length=20)
    tokenize_rows_cached(ROWS[::-1], tokenizer, max_length=20)
    tokenize_rows_cached(ROWS, TOKENIZERS["pieces"], max_length=20)
    tokenizer.chat_template = TEMPLATE.replace(":", "")
    tokenize_rows_cached(ROWS, tokenizer, max_length=20)
    tokenizer.eos_token = "."
    tokenize_rows_cached(ROWS, tokenizer, max_length=20)
    assert len(calls) == 8 == len(list(cache.iterdir()))


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit", "text"])
def test_a_damaged_file_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    expected = tokenize_rows_cached(ROWS, TOKENIZERS["words"], max_length=20)
    [file] = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"empty": b"", "cut": content[:-3], "one bit": content, "text": b"x" * 900}
    file.write_bytes(damaged[damage])
    calls = counted(monkeypatch)
    assert tokenize_rows_cached(ROWS, TOKENIZERS["words"], max_length=20) == expected
    assert tokenize_rows_cached(ROWS, TOKENIZERS["words"], max_length=20) == expected
    assert len(calls) == 1


def test_a_bad_row_is_named_and_nothing_is_kept(cache: Path) -> None:
    rows = [*ROWS, ("rows.json", 31, {"prompt": "x", "completion": ""})]
    with pytest.raises(RosaError, match=r"rows\.json, row 31"):
        tokenize_rows_cached(rows, TOKENIZERS["words"], max_length=20)
    assert not cache.exists()


def test_without_a_place_to_write_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "MIN_CACHED_ROWS", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROSA_CACHE", str(tmp_path / "file"))
    assert tokenize_rows_cached(ROWS, TOKENIZERS["words"], max_length=20).rows


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ROSA_CACHE", raising=False)
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    assert token_cache.cache_folder() == Path.home() / ".cache" / "rosa"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert token_cache.cache_folder() == tmp_path / "rosa"


def _in_a_process(folder: str) -> str:
    os.environ["ROSA_CACHE"] = folder
    token_cache.MIN_CACHED_ROWS = 1
    found = [tokenize_rows_cached(ROWS, TOKENIZERS["words"], max_length=20).rows for _ in range(20)]
    assert all(rows == found[0] for rows in found)
    return json.dumps(found[0])


@pytest.mark.skipif(os.name != "posix", reason="starts processes by fork")
def test_processes_at_once(cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        left, right = pool.map(_in_a_process, [str(cache)] * 2)
    assert left == right
    assert [file.suffix for file in cache.iterdir()] == [".npz"]
