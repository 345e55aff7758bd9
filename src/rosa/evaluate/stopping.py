"""When a response is over before the model ends it: its answer is decided, or it has said a text.

A row of a batch that is over gets no more tokens, and the batch ends with its last row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The end of a text that the next token may still change: a character of which bytes are missing,
# and spaces that `clean_up_tokenization_spaces` takes out once more is there (" n't", " 're").
_UNSETTLED = re.compile(r"( [ n'rv]*)?\ufffd*\Z")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class RowEnds:
    """A stopping criterion: which rows are over. `lengths` tells of how many tokens those are.

    Args:
        tokenizer: of the model that generates.
        start: where the new tokens begin in a row.
        stops: the tokens that end a response by themselves.
        until: the text that ends one.
        decided: whether a text holds all that its answer depends on; None never asks.
        greedy: whether a row is one response from first to last. Beams change places: nothing is
            remembered of them, and `decided` is not asked.
    """

    def __init__(
        self,
        tokenizer: Any,
        start: int,
        stops: Collection[int],
        until: str | None = None,
        decided: Callable[[str], bool] | None = None,
        greedy: bool = True,
    ) -> None:
        self._tokenizer, self._start, self._stops = tokenizer, start, stops
        self._until, self._greedy = until, greedy
        self._decided = decided if greedy else None
        self.lengths: dict[int, int] = {}  # by row; what follows is padding

    def __call__(self, ids: torch.Tensor, scores: Any, **_more: Any) -> torch.Tensor:
        """Which rows of the (rows, tokens) int64 `ids` are over, as (rows,) bool."""
        import torch

        over = dict(self.lengths)
        for row, tokens in enumerate(ids[:, self._start :].tolist()):
            if row not in over and self._is_over(tokens):
                over[row] = len(tokens)
        if self._greedy:
            self.lengths = over
        return torch.tensor([row in over for row in range(len(ids))], device=ids.device)

    def _is_over(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._stops:
            return True
        if self._until and _has_said(self._until, tokens, self._tokenizer):
            return True
        if self._decided is None:
            return False
        return self._decided(settled_text(tokens, self._tokenizer, self._until))


def _has_said(text: str, tokens: Sequence[int], tokenizer: Any) -> bool:
    """Whether the last of `tokens` completed `text`.

    Transformers' own stop strings fail on tokenizers whose words are not joined from pieces.
    """
    # As many tokens as `text` has letters: it is in them if the last token completed it.
    return text in tokenizer.decode(tokens[-len(text) :])


def settled_text(tokens: Sequence[int], tokenizer: Any, until: str | None = None) -> str:
    """What every response that begins with `tokens` begins with, whatever follows.

    All of them are decoded each time, since what a piece reads as depends on those around it.
    """
    if _ends_in_bytes(tokens, tokenizer):
        return ""
    text = _UNSETTLED.sub("", tokenizer.decode(tokens, skip_special_tokens=True))
    return _before(until, text).strip() if until else text.strip()


def _ends_in_bytes(tokens: Sequence[int], tokenizer: Any) -> bool:
    """Whether the last piece that is shown is one byte of several: an invalid one after it would
    turn them all into replacement marks."""
    for token in reversed(tokens):
        if _BYTE.fullmatch(tokenizer.convert_ids_to_tokens(token) or ""):
            return True
        if tokenizer.decode([token], skip_special_tokens=True):
            return False
    return False


def _before(until: str, text: str) -> str:
    """`text` up to `until`, or up to where it may have begun.

    >>> _before("Below is", "It is B. Bel")
    'It is B. '
    """
    found = text.find(until)
    if found >= 0:
        return text[:found]
    begun = (n for n in range(len(until) - 1, 0, -1) if text.endswith(until[:n]))
    return text[: len(text) - next(begun, 0)]
