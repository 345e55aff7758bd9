"""The text that a model is run on: from a file, a toy task, the hub, or given as strings.

Every text becomes token ids of at most `max_length`: a row of a data set is truncated, a plain text
is cut into pieces of that length, each with the tokenizer's beginning-of-text token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.data.row_files import SUFFIXES, read_text, text_field
from rosa.data.sources import load_training_rows, toy_tasks
from rosa.data.splits import sample
from rosa.data.tokenization import KNOWN_FORMS, LocatedRow, encode_prompts, tokenize_rows
from rosa.errors import RosaError
from rosa.models.loading import quiet

PLAIN_TEXT = (".txt", ".text", ".md")
_FORMS = ("messages", "instruction", "prompt")


@dataclass(frozen=True)
class TextSource:
    """Texts before tokenization: plain ones, or rows of a data set."""

    name: str
    plain: Sequence[str] = ()
    rows: Sequence[LocatedRow] = ()


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids, and the name of where they come from."""

    sequences: list[list[int]]
    source: str

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def __str__(self) -> str:
        return f"{self.source}: {len(self.sequences)} texts, {self.tokens:,} tokens"


def read_texts(data: str | None = None) -> TextSource:
    """The content of `data`, which needs no model.

    Args:
        data: a plain text file, a file of rows (JSON, CSV, Parquet), a toy task, or a hub id.
            None takes the toy tasks that come with the package.

    Raises:
        RosaError: a file that is missing, unreadable or damaged (with its row), or a hub id that
            cannot be loaded.
    """
    if data is not None and data not in toy_tasks() and not data.lower().endswith(SUFFIXES):
        path = Path(data).expanduser()
        if path.is_file() or data.endswith(PLAIN_TEXT):
            return TextSource(data, [read_text(path)])
    names = toy_tasks() if data is None else [data]
    rows = [(name, n, row) for name in names for n, row in enumerate(load_training_rows(name), 1)]
    return TextSource(data or f"the package's toy questions ({', '.join(names)})", rows=rows)


def tokenize_texts(
    tokenizer: Any,
    source: TextSource,
    *,
    limit: int | None = None,
    max_length: int = 512,
    seed: int = 0,
) -> TokenizedTexts:
    """Token ids of a seeded sample of `limit` rows, or pieces of plain text.

    Raises:
        RosaError: a bad row (naming the file and row), or no text.
    """
    pieces = [ids for text in source.plain for ids in _pieces(tokenizer, text, max_length)]
    rows = sample(list(source.rows), limit, seed)
    sequences = sample(pieces, limit, seed) + _row_ids(tokenizer, rows, max_length)
    if not sequences:
        raise RosaError(f"there is no text in {source.name}; give some text to run the model on")
    return TokenizedTexts(sequences, source.name)


def _pieces(tokenizer: Any, text: str, max_length: int) -> list[list[int]]:
    """A text in pieces, all but the last `max_length` tokens long; none for an empty one."""
    if not text.strip():
        return []
    with quiet():  # a tokenizer warns about long texts, which are cut right here
        ids = encode_prompts(tokenizer, [text])[0]
    start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
    body, room = ids[len(start) :], max_length - len(start)
    return [start + body[i : i + room] for i in range(0, len(body), room)]


def _row_ids(tokenizer: Any, rows: Sequence[LocatedRow], max_length: int) -> list[list[int]]:
    ids: list[list[int]] = []
    for source, number, row in rows:
        if any(form in row for form in _FORMS):
            # With the prompt in the loss no row is dropped for a long prompt.
            tokenized = tokenize_rows(
                [(source, number, row)], tokenizer, max_length=max_length, train_on_prompt=True
            )
            ids += [example["input_ids"] for example in tokenized.rows]
        elif "text" in row:
            ids += _pieces(tokenizer, text_field(row, "text", source, number), max_length)[:1]
        else:
            found = ", ".join(map(str, row)) or "nothing"
            raise RosaError(
                f"{source}, row {number}: a row needs `text`, {KNOWN_FORMS}; this one has {found}"
            )
    return ids
