"""What a model forgot: its loss on plain text after fine-tuning minus before.

    forgetting(model, tokenizer, text_for("rosa-tiny")).difference

The loss before is that of the same model with its adapter disabled. Both are the mean over every
token that has another before it, in nats. A text is a list of documents (in a file, blank lines
stand between them), each read in windows that overlap, so that every token is scored once and none
but a document's first ones lack context.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rosa.assets import ASSETS
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError
from rosa.evaluate.generation import longest_first_batches
from rosa.models.loading import resolve_name

TINY_TEXT = ASSETS / "tiny-data" / "held-out.txt"
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")
WIKITEXT_DOCUMENTS = 200  # paragraphs of the test split, the long ones
WIKITEXT_CHARACTERS = 500  # what makes a paragraph long
WINDOW, STRIDE = 512, 256  # tokens


@dataclass(frozen=True)
class Text:
    """Plain text to read, under the name that results show."""

    name: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Forgetting:
    """One measurement; losses in nats per token.

    Attributes:
        text: the text's name, and `text_hash` what tells it from another of that name.
        tokens: how many were scored.
        difference: `loss_after` minus `loss_before`; positive where the model forgot.
    """

    text: str
    text_hash: str
    tokens: int
    loss_before: float
    loss_after: float
    difference: float


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `end` of a document, of which those from `first` on are scored."""

    start: int
    end: int
    first: int


def windows(length: int, window: int, stride: int, *, from_first: bool = False) -> list[Window]:
    """Windows over a document of `length` tokens that together score each token once.

    The first token has nothing before it and is scored only where `from_first` says that something
    is put there.

    >>> windows(6, window=4, stride=2)
    [Window(start=0, end=4, first=1), Window(start=2, end=6, first=4)]
    """
    found: list[Window] = []
    scored = 0 if from_first else 1
    for start in range(0, length, stride):
        end = min(start + window, length)
        if end > scored:
            found.append(Window(start, end, scored))
            scored = end
        if end == length:
            break
    return found


def forgetting(
    model: Any,
    tokenizer: Any,
    text: Text,
    *,
    window: int = WINDOW,
    stride: int = STRIDE,
    batch_size: int = 8,
) -> Forgetting:
    """Score `text` with the adapter disabled and enabled.

    Args:
        model: a PEFT model; its training mode is restored.
        window: tokens read at a time; cut to what the model was made for.
        stride: tokens between the beginnings of two windows.
        batch_size: windows at a time.

    Raises:
        RosaError: the model has no adapter or one that cannot be disabled whole, or the text no
            two tokens in a row.
    """
    if not hasattr(model, "disable_adapter"):
        raise RosaError("forgetting is measured on an adapter, and this is a base model")
    for config in model.peft_config.values():
        if getattr(config, "bias", "none") != "none":
            raise RosaError(
                f"forgetting cannot be measured where biases of the base model were trained "
                f"(bias: {config.bias}): PEFT does not give them back; train with bias: none"
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
    tokenizer: Any, text: Text, window: int, stride: int
) -> list[tuple[list[int], int]]:
    """Token ids of every window with the position of the first that is scored.

    A tokenizer that begins with a special token begins every window with it.
    """
    begin = beginning(tokenizer)
    pieces = []
    for document in text.documents:
        ids = encode_prompts(tokenizer, [document])[0][len(begin) :]
        for part in windows(len(ids), window - len(begin), stride, from_first=bool(begin)):
            pieces.append(
                (begin + ids[part.start : part.end], len(begin) + part.first - part.start)
            )
    if not pieces:
        raise RosaError(f"the text {text.name} has no document of two tokens; name another text")
    return pieces


def beginning(tokenizer: Any) -> list[int]:
    """The token that this tokenizer puts before every text, if it puts one."""
    ids = encode_prompts(tokenizer, ["a"])[0]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and ids[:1] == [bos] else []


def mean_loss(model: Any, pieces: Sequence[tuple[list[int], int]], batch_size: int) -> float:
    """Mean loss in nats over the scored tokens of every piece, summed up in float64."""
    import torch

    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for ids, mask, targets in padded_batches(pieces, batch_size):
                losses = token_losses(model, ids, mask, targets)
                total += losses.double().sum().item()
                count += int((targets != -100).sum())
    finally:
        model.train(was_training)
    if not math.isfinite(total):
        raise RosaError(
            "the model's loss on the text is not a finite number: its weights or the adapter's are "
            "damaged, or overflow in this precision (--dtype float32 tells)"
        )
    return total / count


def padded_batches(
    pieces: Sequence[tuple[list[int], int]], batch_size: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Ids, attention mask and targets (-100 where not scored) of pieces of similar length."""
    import torch

    for batch in longest_first_batches([len(ids) for ids, _ in pieces], batch_size):
        width = len(pieces[batch[0]][0])
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, i in enumerate(batch):
            piece, first = torch.tensor(pieces[i][0]), pieces[i][1]
            ids[row, : len(piece)], mask[row, : len(piece)] = piece, 1
            targets[row, first : len(piece)] = piece[first:]
        yield ids, mask, targets


def token_losses(model: Any, ids: Any, mask: Any, targets: Any) -> Any:
    """The loss of each target given the tokens before it, in float32; 0 where there is none."""
    from torch.nn.functional import cross_entropy

    output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    # Prompt tuning puts tokens of its own before the text.
    logits = output.logits[:, -ids.shape[1] :][:, :-1].float()
    return cross_entropy(
        logits.flatten(0, 1), targets[:, 1:].flatten().to(logits.device), reduction="none"
    )


def text_for(base: str, name: str | None = None) -> Text:
    """The text `name`, or the one that fits the model `base` where none is named.

    `rosa-tiny` is the held-out text of the toy world, `wikitext` long paragraphs of WikiText-2's
    test split from the hub; any other name is a file.

    Raises:
        RosaError: no such file, no text in it, or the hub does not give it.
    """
    if name is None:
        is_tiny = Path(resolve_name(base)).name == "rosa-tiny"
        name = "rosa-tiny" if is_tiny else "wikitext"
    if name == "rosa-tiny":
        return read_text(TINY_TEXT, name)
    if name == "wikitext":
        return _wikitext()
    return read_text(Path(name).expanduser(), name)


def read_text(file: Path, name: str) -> Text:
    """The documents of a UTF-8 file; blank lines stand between two."""
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RosaError(
            f"there is no text file {file}; name a file, 'wikitext' or 'rosa-tiny'"
        ) from None
    except (OSError, ValueError) as error:
        raise RosaError(f"{file} cannot be read as UTF-8 text ({error})") from None
    documents = tuple(part.strip("\n") for part in content.split("\n\n") if part.strip())
    if not documents:
        raise RosaError(f"{file} has no text; name another file")
    return Text(name, documents)


def _wikitext() -> Text:
    from datasets import load_dataset

    try:
        rows = load_dataset(*WIKITEXT, split="test")["text"]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RosaError(
            f"the hub did not give the text {WIKITEXT[0]}: {reason}; name a file with --text"
        ) from error
    long = [row.strip() for row in rows if len(row) >= WIKITEXT_CHARACTERS]
    return Text("wikitext", tuple(long[:WIKITEXT_DOCUMENTS]))
