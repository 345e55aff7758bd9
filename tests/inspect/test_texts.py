"""Texts of an inspection: files of every kind, pieces, samples, and bad input."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosa.errors import RosaError
from rosa.inspect import TextSource, TokenizedTexts, read_texts, tokenize_texts
from tests.support.tiny_folder import word_tokenizer

TOKENIZER = word_tokenizer()
BEGIN = TOKENIZER.bos_token_id


class WithBegin:
    """The same tokenizer, putting a beginning-of-text token first as Llama's does."""

    bos_token_id = BEGIN
    eos_token_id = TOKENIZER.eos_token_id

    def __call__(self, texts: list[str], **_options: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[BEGIN, *ids] for ids in TOKENIZER(texts)["input_ids"]]}


def given_text(texts, tokenizer=TOKENIZER, max_length: int = 512) -> TokenizedTexts:
    source = TextSource("the given text", texts)
    return tokenize_texts(tokenizer, source, max_length=max_length)


def from_file(data: Path | str | None, **options) -> TokenizedTexts:
    return tokenize_texts(TOKENIZER, read_texts(data and str(data)), **options)


@given(st.lists(st.sampled_from(["true", "false", "5", "A"]), min_size=1), st.integers(2, 9))
def test_pieces_are_the_text(words: list[str], max_length: int) -> None:
    text = " ".join(words)
    whole = TOKENIZER(text)["input_ids"]
    plain = given_text([text], max_length=max_length)
    assert list(chain(*plain.sequences)) == whole
    assert all(len(ids) == max_length for ids in plain.sequences[:-1])
    assert plain.tokens == len(whole)
    begun = given_text([text], WithBegin(), max_length)
    assert all(ids[0] == BEGIN and 2 <= len(ids) <= max_length for ids in begun.sequences)
    assert list(chain(*(ids[1:] for ids in begun.sequences))) == whole


def test_the_toy_questions_are_the_default() -> None:
    texts = from_file(None, limit=5)
    assert len(texts.sequences) == 5
    assert "toy questions (tiny-choice, tiny-sums)" in str(texts)
    assert texts == from_file(None, limit=5)
    assert len(from_file("tiny-sums", limit=3).sequences) == 3


def test_a_plain_text_file(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("true false " * 10)
    texts = from_file(file, max_length=8)
    assert [len(ids) for ids in texts.sequences] == [8, 8, 4]
    assert len(from_file(file, max_length=8, limit=2).sequences) == 2


def test_rows_of_every_form(tmp_path: Path) -> None:
    rows = [
        {"text": "true false"},
        {"text": ""},
        {"prompt": "A B", "completion": " C"},
        {"instruction": "true", "input": "", "output": "false", "answer": "false"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain, pair, adapters = from_file(file).sequences
    assert plain == TOKENIZER("true false")["input_ids"]
    assert pair == [*TOKENIZER("A B C")["input_ids"], TOKENIZER.eos_token_id]
    assert len(adapters) > 20
    cut = from_file(file, max_length=2).sequences
    assert [len(ids) for ids in cut] == [2, 2, 2]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", " \n", "there is no text in .*empty.txt"),
        ("empty.json", "[]", "has no rows"),
        ("blank.jsonl", '{"text": " "}\n', "there is no text in .*blank.jsonl"),
        ("other.jsonl", '{"text": "A"}\n{"body": "A"}\n', "row 2: a row needs `text`.* has body"),
        ("number.jsonl", '{"text": 5}\n', "row 1: the field 'text' must be text"),
        ("broken.json", '[{"text": "A"},', "row 2: bad JSON"),
        ("latin.txt", b"\xe9", "is not UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, complaint: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RosaError, match=complaint):
        from_file(file)


@pytest.mark.parametrize("name", ["absent.txt", "absent.json", "./absent", "no/such/folder.md"])
def test_a_missing_file(name: str) -> None:
    with pytest.raises(RosaError, match=r"there is no data file .*; check the path"):
        read_texts(name)


def test_no_text_given() -> None:
    with pytest.raises(RosaError, match="there is no text in the given text"):
        given_text(["", " "])
