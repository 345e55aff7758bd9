"""Ends a response before the model does: once its answer is decided or it contains a stop string.

A finished row of a batch gets only padding, and the batch ends with its last row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# The end of a text that the next token may still change: a character of which bytes are missing,
# and spaces that `clean_up_tokenization_spaces` removes before what may follow (" n't", " 're").
_UNSETTLED = re.compile(r"( [ n'rv]*)?\ufffd*\Z")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class RowStoppingCriteria:
    """A stopping criterion that finishes each row of a batch separately.

    A row is finished by one of the token ids `stops`, by the text `until`, or when its text
    satisfies `stop_when`; `start` is the position of its first new token. `lengths` maps each
    finished row to its number of new tokens; padding follows them. Beams (`greedy=False`) change
    rows: nothing is remembered of them, and `stop_when` is not called.
    """

    def __init__(
        self,
        tokenizer: Any,
        start: int,
        stops: Collection[int],
        until: str | None = None,
        stop_when: Callable[[str], bool] | None = None,
        greedy: bool = True,
    ) -> None:
        self._tokenizer, self._start, self._stops = tokenizer, start, stops
        self._until, self._greedy = until, greedy
        self._stop_when = stop_when if greedy else None
        self.lengths: dict[int, int] = {}

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows of the (rows, tokens) int64 `ids` are finished, as (rows,) bool."""
        import torch

        finished = dict(self.lengths)
        for row, tokens in enumerate(ids[:, self._start :].tolist()):
            if row not in finished and self._is_finished(tokens):
                finished[row] = len(tokens)
        if self._greedy:
            self.lengths = finished
        return torch.tensor([row in finished for row in range(len(ids))], device=ids.device)

    def _is_finished(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] in self._stops:
            return True
        # Transformers' own stop strings fail on tokenizers whose words are not joined from pieces.
        # If the last token completed `until`, as many tokens as it has characters contain it.
        until = self._until
        if until and until in self._tokenizer.decode(tokens[-len(until) :]):
            return True
        if self._stop_when is None:
            return False
        return self._stop_when(settled_text(tokens, self._tokenizer, until))


def settled_text(tokens: Sequence[int], tokenizer: Any, until: str | None = None) -> str:
    """The text that every response starting with `tokens` starts with, whatever follows.

    All tokens are decoded each time, since the text of a piece depends on those around it.
    """
    if _ends_in_bytes(tokens, tokenizer):
        return ""
    text = _UNSETTLED.sub("", tokenizer.decode(tokens, skip_special_tokens=True))
    return _before(until, text).strip() if until else text.strip()


def _ends_in_bytes(tokens: Sequence[int], tokenizer: Any) -> bool:
    """Whether the last visible piece is one byte of several.

    An invalid byte after it would turn all of them into replacement characters.
    """
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
