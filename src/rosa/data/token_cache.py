"""Tokenised rows kept between runs, in one file for each set of rows, tokenizer and options.

    examples = tokenize_rows_cached(rows, tokenizer, max_length=512)     # as `tokenize_rows`

A file's name is a hash of all that decides what is in it: the rows, the tokenizer with its chat
template, the options, the libraries' versions. It lies in `ROSA_CACHE`, else in `rosa` inside
`HF_DATASETS_CACHE`, else in `~/.cache/rosa`, and may be deleted at any time: what is missing or
damaged is made again. It is written under another name and renamed, so that several processes may
do so at once. Where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from rosa.data.tokenization import LocatedRow, TokenizedRows, tokenize_rows

FORMAT = 1  # another where the same input shall give other tokens
MIN_CACHED_ROWS = 1000  # rows; fewer are tokenised as fast as they are read


def tokenize_rows_cached(
    rows: Sequence[LocatedRow], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> TokenizedRows:
    """`tokenize_rows(rows, tokenizer, **options)`, from the cache where it is there.

    Raises:
        RosaError: what `tokenize_rows` raises; nothing is kept then.
    """
    identity = _identity(tokenizer) if len(rows) >= MIN_CACHED_ROWS else None
    if identity is None:
        return tokenize_rows(rows, tokenizer, **options)
    file = cache_folder() / f"{_key(rows, identity, options)}.safetensors"
    found = _read(file)
    if found is None:
        found = tokenize_rows(rows, tokenizer, **options)
        with contextlib.suppress(OSError):
            _write(found, file)
    return found


def cache_folder() -> Path:
    """Where tokenised rows are kept."""
    if own := os.environ.get("ROSA_CACHE"):
        return Path(own).expanduser()
    if datasets := os.environ.get("HF_DATASETS_CACHE"):
        return Path(datasets).expanduser() / "rosa"
    return Path.home() / ".cache" / "rosa"


def _identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """All that decides what a tokenizer makes of a text; None where it does not tell."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    template = tokenizer.chat_template
    return {
        "backend": backend.to_str(),
        "class": type(tokenizer).__qualname__,
        "template": template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "end": tokenizer.eos_token_id,
        # Templates may write the date.
        "today": date.today().isoformat() if "strftime_now" in str(template) else "",
        "versions": [transformers.__version__, tokenizers.__version__, FORMAT],
    }


def _key(rows: Sequence[LocatedRow], identity: dict[str, Any], options: dict[str, Any]) -> str:
    """A hash of the rows' contents in their order, of the tokenizer and of the options."""
    hasher = hashlib.sha256(json.dumps([identity, options], sort_keys=True).encode())
    for _, _, record in rows:
        hasher.update(json.dumps(record, default=str).encode() + b"\n")
    return hasher.hexdigest()


def _write(examples: TokenizedRows, file: Path) -> None:
    from safetensors.numpy import save

    lengths = np.array([len(row["input_ids"]) for row in examples.rows], dtype=np.int64)
    counts = np.array([examples.truncated, examples.dropped], dtype=np.int64)
    ids, labels = (
        np.fromiter((token for row in examples.rows for token in row[name]), dtype=np.int32)
        for name in ("input_ids", "labels")
    )
    tensors: dict[str, Any] = {"ids": ids, "labels": labels}
    tensors |= {"lengths": lengths, "counts": counts}
    content = save(tensors, metadata={"checksum": _checksum(tensors)})
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(part, file)
    except OSError:
        Path(part).unlink(missing_ok=True)
        raise


def _read(file: Path) -> TokenizedRows | None:
    """What a file holds; None where it is not there, or not as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            if _checksum(tensors) != (stored.metadata() or {}).get("checksum"):
                return None
        ends = np.cumsum(tensors["lengths"]).tolist()
        ids, labels = tensors["ids"].tolist(), tensors["labels"].tolist()
        truncated, dropped = tensors["counts"].tolist()
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    spans = zip([0, *ends], ends, strict=False)
    rows = [{"input_ids": ids[a:b], "labels": labels[a:b]} for a, b in spans]
    return TokenizedRows(rows, truncated, dropped)


def _checksum(tensors: dict[str, Any]) -> str:
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode() + tensors[name].tobytes())
    return hasher.hexdigest()
