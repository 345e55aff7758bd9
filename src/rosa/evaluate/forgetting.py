"""Forgetting: the loss on plain text with the adapter enabled minus with it disabled.

    measure_forgetting(model, tokenizer, load_text("rosa-tiny")).difference

Both are means over all tokens with context, in nats. A text is a list of documents (in a file,
separated by blank lines), each read in overlapping windows that score every token once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.data.row_files import read_text
from rosa.data.sources import TOY_DATA
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError, errors_as
from rosa.evaluate.generation import eval_mode, longest_first_batches, max_positions
from rosa.models.loading import resolve_name

TINY_TEXT = TOY_DATA / "held-out.txt"
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
    """One measurement on the text named `text`: losses in nats per token, over `tokens` tokens.

    `difference` is `loss_after` minus `loss_before`, positive where the model forgot.
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


def measure_forgetting(
    model: Any,
    tokenizer: Any,
    text: PlainText,
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    batch_size: int = 8,
) -> Forgetting:
    """The loss on `text` of a PEFT model with its adapter disabled and enabled.

    A forward pass takes `window` tokens, at most the model's `max_position_embeddings`, and starts
    `stride` tokens after the one before.

    Raises RosaError for a model without an adapter or with trained biases, which PEFT does not
    disable, and for a text without a document of two tokens.
    """
    if not hasattr(model, "disable_adapter"):
        raise RosaError("forgetting is measured on an adapter, and this is a base model")
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise RosaError(
                "forgetting cannot be measured with trained biases of the base model (bias: "
                f"{config.bias}): disabling the adapter keeps them; train with bias: none"
            )
    window = int(min(window, max_positions(model)))
    begin = [tokenizer.bos_token_id]
    if encode_prompts(tokenizer, ["a"])[0][:1] != begin:
        begin = []
    windows = [
        piece
        for ids in encode_prompts(tokenizer, text.documents)
        for piece in scored_windows(ids[len(begin) :], begin, window, min(stride, window - 1))
    ]
    if not windows:
        raise RosaError(f"the text {text.name} has no document of two tokens; choose another text")
    with model.disable_adapter():
        before = mean_loss(model, windows, batch_size)
    after = mean_loss(model, windows, batch_size)
    return Forgetting(
        text=text.name,
        text_hash=hashlib.sha256("\n\n".join(text.documents).encode()).hexdigest()[:16],
        tokens=sum(len(ids) - first for ids, first in windows),
        loss_before=before,
        loss_after=after,
        difference=after - before,
    )


def scored_windows(
    ids: list[int], begin: list[int], window: int, stride: int
) -> list[tuple[list[int], int]]:
    """Windows over `ids` that score each token once, each with its first scored position.

    Each starts with `begin`, the beginning-of-text token if the tokenizer adds one; without it the
    first token has no context and is not scored.

    >>> scored_windows([10, 11, 12, 13, 14, 15], [], window=4, stride=2)
    [([10, 11, 12, 13], 1), ([12, 13, 14, 15], 2)]
    """
    window -= len(begin)
    found = []
    scored = 0 if begin else 1
    for start in range(0, len(ids), stride):
        end = min(start + window, len(ids))
        if end > scored:
            found.append((begin + ids[start:end], len(begin) + scored - start))
            scored = end
        if end == len(ids):
            break
    return found


def mean_loss(model: Any, windows: Sequence[tuple[list[int], int]], batch_size: int) -> float:
    """Mean loss in nats over the scored tokens of all windows, in float32, summed in float64."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    total, count = 0.0, 0
    for batch in longest_first_batches([len(ids) for ids, _ in windows], batch_size):
        rows = [torch.tensor(windows[i][0]) for i in batch]
        scored = [row.clone() for row in rows]
        for row, i in zip(scored, batch, strict=True):
            row[: windows[i][1]] = -100
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


def load_text(base: str, name: str = "auto") -> PlainText:
    """The text `name`; "auto" is the one that fits the model `base`.

    `rosa-tiny` is the held-out text of the toy world, `wikitext` long paragraphs of WikiText-2's
    test split from the hub; any other name is a UTF-8 file.
    """
    if name == "auto":
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

    with errors_as(f"cannot load {WIKITEXT[0]} from the hub (--forgetting FILE reads a file)"):
        rows = load_dataset(*WIKITEXT, split="test")["text"]
    long = [row.strip() for row in rows if len(row) >= WIKITEXT_CHARACTERS]
    return PlainText("wikitext", tuple(long[:WIKITEXT_DOCUMENTS]))
