"""The text that a model is looked at with: from a file, a toy task, the hub, or the command line.

Every text becomes token ids of at most `max_length`: a row of a data set is cut there, a plain text
is cut into pieces of that length, each with the tokenizer's beginning-of-text token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.data.json_rows import read_text, text_field
from rosa.data.sampling import sample
from rosa.data.sources import load_training_rows, toy_tasks
from rosa.data.tokenization import KNOWN_FORMS, encode_prompts, tokenize_rows
from rosa.errors import RosaError
from rosa.models.loading import quiet

PLAIN_TEXT = (".txt", ".text", ".md")
_FORMS = ("messages", "instruction", "prompt")


@dataclass(frozen=True)
class Texts:
    """Token ids, and in words where they come from."""

    sequences: list[list[int]]
    source: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def __str__(self) -> str:
        return f"{self.source}: {len(self.sequences)} texts, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Source:
    """Text as it was found: one plain text, or rows (source, number from 1, fields)."""

    name: str
    plain: str | None = None
    rows: Sequence[tuple[str, int, dict[str, Any]]] = ()


def read_source(data: str | None = None) -> Source:
    """The content of `data`, before any model is needed.

    Args:
        data: a plain text file, a JSON or JSONL file, a toy task, or a hub id (its train split).
            None takes the toy tasks that come with the package.

    Raises:
        RosaError: a file that is missing, unreadable or damaged (with its row), or a hub id that
            cannot be loaded.
    """
    if data is not None and _is_plain_text(data):
        return Source(data, plain=read_text(Path(data).expanduser()))
    names = toy_tasks() if data is None else [data]
    rows = [(name, n, row) for name in names for n, row in enumerate(load_training_rows(name), 1)]
    return Source(data or f"the package's toy questions ({', '.join(names)})", rows=rows)


def read_texts(
    tokenizer: Any,
    source: Source | str | None = None,
    *,
    limit: int | None = 64,
    max_length: int = 512,
    seed: int = 0,
) -> Texts:
    """Token ids of a seeded sample of `limit` texts of `source` (see `read_source`).

    Raises:
        RosaError: bad or missing data (naming the file and row), or no text in it.
    """
    if not isinstance(source, Source):
        source = read_source(source)
    if source.plain is not None:
        pieces = _pieces(tokenizer, source.plain, max_length)
        return _checked(sample(pieces, limit, seed), source.name)
    chosen = sample(list(source.rows), limit, seed)
    return _checked(_row_ids(tokenizer, chosen, max_length), source.name)


def as_texts(
    tokenizer: Any, texts: Iterable[str], *, max_length: int = 512, source: str = "the given text"
) -> Texts:
    """Token ids of given texts, in pieces of at most `max_length`.

    Raises RosaError where they hold no text.
    """
    ids = [piece for text in texts for piece in _pieces(tokenizer, text, max_length)]
    return _checked(ids, source)


def _is_plain_text(data: str) -> bool:
    if data in toy_tasks() or data.endswith((".json", ".jsonl")):
        return False
    return Path(data).expanduser().is_file() or data.endswith(PLAIN_TEXT)


def _pieces(tokenizer: Any, text: str, max_length: int) -> list[list[int]]:
    """A text in pieces, all but the last `max_length` tokens long; none for an empty one."""
    if not text.strip():
        return []
    with quiet():  # a tokenizer warns of long texts, which are cut right here
        ids = encode_prompts(tokenizer, [text])[0]
    start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    body, room = ids[len(start) :], max_length - len(start)
    return [start + body[i : i + room] for i in range(0, len(body), room)]


def _row_ids(
    tokenizer: Any, rows: Sequence[tuple[str, int, dict[str, Any]]], max_length: int
) -> list[list[int]]:
    ids: list[list[int]] = []
    for source, number, row in rows:
        if any(form in row for form in _FORMS):
            # With the prompt in the loss no row is dropped for having a long one.
            examples = tokenize_rows(
                [(source, number, row)], tokenizer, max_length=max_length, train_on_prompt=True
            )
            ids += [example["input_ids"] for example in examples.rows]
        elif "text" in row:
            ids += _pieces(tokenizer, text_field(row, "text", source, number), max_length)[:1]
        else:
            found = ", ".join(map(str, row)) or "nothing"
            raise RosaError(
                f"{source}, row {number}: a row needs `text`, {KNOWN_FORMS}; this one has {found}"
            )
    return ids


def _checked(sequences: list[list[int]], source: str) -> Texts:
    if not sequences:
        raise RosaError(f"there is no text in {source}; give some text to run the model on")
    return Texts(sequences, source)
