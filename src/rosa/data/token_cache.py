"""Tokenized rows kept between runs: one file per set of rows, tokenizer and options.

The files are in `ROSA_CACHE`, else in `rosa` inside `HF_DATASETS_CACHE`, else in `~/.cache/rosa`,
and may be deleted at any time.
"""
# Not the cache of `datasets`: it keeps no counts of truncated and dropped rows, does not notice a
# damaged file, and raises where it cannot write. Here the rows are tokenized again instead.

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosa.data.tokenization import LocatedRow, TokenizedRows, tokenize_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 3  # increase it when the same input shall give other tokens
MIN_CACHED_ROWS = 1000  # fewer are tokenized as fast as they are read


def tokenize_rows_cached(
    rows: Sequence[LocatedRow], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> TokenizedRows:
    """`tokenize_rows(rows, tokenizer, **options)`, from the cache if it is there.

    Raises:
        RosaError: what `tokenize_rows` raises; nothing is written then.
    """
    # A slow tokenizer cannot be serialized, so it cannot be distinguished from another.
    if len(rows) < MIN_CACHED_ROWS or not hasattr(tokenizer, "backend_tokenizer"):
        return tokenize_rows(rows, tokenizer, **options)
    file = cache_folder() / f"{_key(rows, tokenizer, options)}.npz"
    found = _read(file)
    if found is None:
        found = tokenize_rows(rows, tokenizer, **options)
        with contextlib.suppress(OSError):
            _write(found, file)
    return found


def cache_folder() -> Path:
    """The folder of cached tokenized rows."""
    if own := os.environ.get("ROSA_CACHE"):
        return Path(own).expanduser()
    if datasets := os.environ.get("HF_DATASETS_CACHE"):
        return Path(datasets).expanduser() / "rosa"
    return Path.home() / ".cache" / "rosa"


def _key(rows: Sequence[LocatedRow], tokenizer: Any, options: dict[str, Any]) -> str:
    """A hash of everything that decides the tokens: rows in order, tokenizer, options, versions."""
    import tokenizers
    import transformers

    template = str(tokenizer.chat_template)
    identity = [
        tokenizer.backend_tokenizer.to_str(),
        type(tokenizer).__qualname__,
        template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.eos_token_id,
        date.today().isoformat() if "strftime_now" in template else "",  # it writes the date
        [transformers.__version__, tokenizers.__version__, FORMAT],
        options,
    ]
    hasher = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for _, _, row in rows:
        hasher.update(json.dumps(row, default=str).encode() + b"\n")
    return hasher.hexdigest()


def _write(found: TokenizedRows, file: Path) -> None:
    """Written under a name of this process and renamed: several processes may do so at once."""
    ids, labels = (
        np.fromiter((token for row in found.rows for token in row[name]), dtype=np.int32)
        for name in ("input_ids", "labels")
    )
    lengths = np.array([len(row["input_ids"]) for row in found.rows], dtype=np.int64)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.npz")
    try:
        counts = [found.truncated, found.dropped]
        np.savez(part, ids=ids, labels=labels, lengths=lengths, counts=counts)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _read(file: Path) -> TokenizedRows | None:
    """The content of a cache file; None if it is missing or damaged (a zip has checksums)."""
    try:
        with np.load(file) as stored:
            ids, labels, lengths, counts = (
                stored[name].tolist() for name in ("ids", "labels", "lengths", "counts")
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    ends = np.cumsum(lengths).tolist()
    spans = zip([0, *ends], ends, strict=False)
    return TokenizedRows(
        [{"input_ids": ids[start:end], "labels": labels[start:end]} for start, end in spans],
        *counts,
    )
