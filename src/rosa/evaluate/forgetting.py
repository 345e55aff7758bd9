"""Forgetting: the loss on plain text with the adapter enabled minus with it disabled.

    measure_forgetting(model, tokenizer, load_text("rosa-tiny")).difference

Both are means over all tokens that have one before them, in nats. A text is a list of documents (in
a file, separated by blank lines), each read in overlapping windows, so that every token is scored
once, with context.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.assets import ASSETS
from rosa.data.json_rows import read_text
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError, one_line
from rosa.evaluate.generation import eval_mode, longest_first_batches
from rosa.models.loading import resolve_name

TINY_TEXT = ASSETS / "tiny-data" / "held-out.txt"
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
WIKITEXT_DOCUMENTS = 200  # paragraphs of the test split
WIKITEXT_CHARACTERS = 500  # at least, of each paragraph
WINDOW, STRIDE = 512, 256  # tokens


@dataclass(frozen=True)
class PlainText:
    """A text to compute the loss on; results show its name."""

    name: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Forgetting:
    """One measurement; losses in nats per token.

    Attributes:
        text: the text's name; `text_hash` is a hash of its content.
        tokens: number of scored tokens.
        difference: `loss_after` minus `loss_before`; positive where the model forgot.
    """

    text: str
    text_hash: str
    tokens: int
    loss_before: float
    loss_after: float
    difference: float

    def __str__(self) -> str:
        return (
            f"forgetting on {self.text} ({self.tokens:,} tokens): {self.loss_before:.4f} nats per "
            f"token before, {self.loss_after:.4f} after, {self.difference:+.4f}"
        )


def windows(
    length: int, window: int, stride: int, *, from_first: bool = False
) -> list[tuple[int, int, int]]:
    """(start, end, first scored token) of windows over `length` tokens that score each token once.

    The first token is scored only with `from_first`, where a special token precedes it.

    >>> windows(6, window=4, stride=2)
    [(0, 4, 1), (2, 6, 4)]
    """
    found = []
    scored = 0 if from_first else 1
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > scored:
            found.append((start, end, scored))
            scored = end
        if end == length:
            break
    return found


def measure_forgetting(
    model: Any,
    tokenizer: Any,
    text: PlainText,
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    batch_size: int = 8,
) -> Forgetting:
    """The loss on `text` with the adapter disabled and enabled.

    Args:
        model: a PEFT model; its training mode is restored.
        window: tokens per forward pass, at most the model's `max_position_embeddings`.
        stride: tokens between the starts of two windows.
        batch_size: windows per batch.

    Raises:
        RosaError: the model has no adapter or has trained biases, which PEFT does not disable, or
            no document has two tokens.
    """
    if not hasattr(model, "disable_adapter"):
        raise RosaError("forgetting is measured on an adapter, and this is a base model")
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise RosaError(
                "forgetting cannot be measured with trained biases of the base model (bias: "
                f"{config.bias}): disabling the adapter keeps them; train with bias: none"
            )
    window = min(window, getattr(model.config, "max_position_embeddings", None) or window)
    pieces = scored_pieces(tokenizer, text, window, min(stride, window - 1))
    with model.disable_adapter():
        before = mean_loss(model, pieces, batch_size)
    after = mean_loss(model, pieces, batch_size)
    return Forgetting(
        text=text.name,
        text_hash=hashlib.sha256("\n\n".join(text.documents).encode()).hexdigest()[:16],
        tokens=sum(len(ids) - first for ids, first in pieces),
        loss_before=before,
        loss_after=after,
        difference=after - before,
    )


def scored_pieces(
    tokenizer: Any, text: PlainText, window: int, stride: int
) -> list[tuple[list[int], int]]:
    """Token ids of every window and the position of its first scored token.

    Every window begins with the tokenizer's beginning-of-text token, if it adds one.
    """
    begin = [tokenizer.bos_token_id]
    if encode_prompts(tokenizer, ["a"])[0][:1] != begin:
        begin = []
    pieces = []
    for ids in encode_prompts(tokenizer, text.documents):
        ids = ids[len(begin) :]
        for start, end, first in windows(
            len(ids), window - len(begin), stride, from_first=bool(begin)
        ):
            pieces.append((begin + ids[start:end], len(begin) + first - start))
    if not pieces:
        raise RosaError(f"the text {text.name} has no document of two tokens; choose another text")
    return pieces


def mean_loss(model: Any, pieces: Sequence[tuple[list[int], int]], batch_size: int) -> float:
    """Mean loss in nats over the scored tokens of all pieces, in float32, summed in float64."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    total, count = 0.0, 0
    for batch in longest_first_batches([len(ids) for ids, _ in pieces], batch_size):
        rows = [torch.tensor(pieces[i][0]) for i in batch]
        scored = [row.clone() for row in rows]
        for row, i in zip(scored, batch, strict=True):
            row[: pieces[i][1]] = -100
        ids = pad_sequence(rows, batch_first=True).to(model.device)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(ids.device)
        targets = pad_sequence(scored, batch_first=True, padding_value=-100)[:, 1:]
        with eval_mode(model), torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        # Prompt tuning prepends virtual tokens to the text.
        logits = logits[:, -ids.shape[1] :][:, :-1].flatten(0, 1).float()
        losses = cross_entropy(logits, targets.flatten().to(logits.device), reduction="none")
        total += losses.double().sum().item()
        count += int((targets != -100).sum())
    if not math.isfinite(total):
        raise RosaError(
            "the model's loss on the text is not a finite number: its weights or the adapter's are "
            "damaged, or overflow in this precision (try --dtype float32)"
        )
    return total / count


def load_text(base: str, name: str | None = None) -> PlainText:
    """The text `name`, or the one that fits the model `base` where it is None or "auto".

    `rosa-tiny` is the held-out text of the toy world, `wikitext` long paragraphs of WikiText-2's
    test split from the hub; any other name is a UTF-8 file.

    Raises:
        RosaError: the file cannot be read or is empty, or the hub cannot be reached.
    """
    if name in (None, "auto"):
        is_tiny = Path(resolve_name(base)).name == "rosa-tiny"
        name = "rosa-tiny" if is_tiny else "wikitext"
    if name == "wikitext":
        return _wikitext()
    file = TINY_TEXT if name == "rosa-tiny" else Path(name).expanduser()
    paragraphs = read_text(file).split("\n\n")
    documents = tuple(part.strip("\n") for part in paragraphs if part.strip())
    if not documents:
        raise RosaError(f"{file} has no text; choose another file")
    return PlainText(name, documents)


def _wikitext() -> PlainText:
    from datasets import load_dataset

    try:
        rows = load_dataset(*WIKITEXT, split="test")["text"]
    except Exception as error:
        reason = one_line(error)
        raise RosaError(
            f"cannot load the text {WIKITEXT[0]} from the hub ({reason}); give a file: "
            "--forgetting FILE"
        ) from error
    long = [row.strip() for row in rows if len(row) >= WIKITEXT_CHARACTERS]
    return PlainText("wikitext", tuple(long[:WIKITEXT_DOCUMENTS]))
