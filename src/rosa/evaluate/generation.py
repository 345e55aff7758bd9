"""Batched greedy (or beam) generation for evaluation, on Transformers' own `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rosa.errors import RosaError
from rosa.evaluate.stopping import RowEnds

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Response:
    """The text that a model added to one prompt, and how many tokens that took, padding aside."""

    text: str
    tokens: int


def longest_first_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of similar length, the longest first: too large a batch shows at once.

    >>> longest_first_batches([3, 9, 5], batch_size=2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Which share of the prompts' tokens, as they are read in batches, is padding.

    >>> padding_share([3, 9, 5], [[1, 2], [0]])
    0.19047619047619047
    """
    read = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for batch in batches for i in batch) / read if read else 0.0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    until: str | None = None,
    decided: Callable[[str], bool] | None = None,
) -> list[Response]:
    """The responses to a batch of tokenised prompts, padded on the left, without sampling.

    A response ends before the text `until`, where that is given, and in greedy decoding with the
    token after which `decided` is true of its text. Of beams, the best is known only in the end.

    The penalties that some models' generation settings carry are turned off: the protocol is
    plain greedy or beam search, the same for every model.
    """
    import torch

    ids = left_padded(prompts, tokenizer.pad_token_id).to(model.device)
    real = left_padded([[1] * len(prompt) for prompt in prompts], 0).to(model.device)
    stops, start = end_tokens(model, tokenizer), ids.shape[1]
    ends = RowEnds(tokenizer, start, stops, until, decided, greedy=num_beams == 1)
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=real,
                use_cache=True,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                length_penalty=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=stops,
                logits_processor=[_AreNumbers()],
                stopping_criteria=[ends] if until or decided else None,
            )
    except torch.OutOfMemoryError as error:
        raise RosaError(
            f"out of memory with {len(prompts)} prompts of up to {start} tokens; lower --batch_size"
        ) from error
    rows = enumerate(output[:, start:].tolist())
    return [_response(tokenizer, ids[: ends.lengths.get(i)], stops, until) for i, ids in rows]


class _AreNumbers:
    """A logits processor that changes nothing: refuses logits that are no numbers.

    Of such logits generation makes text without a word. The first token of a batch tells.
    """

    def __init__(self) -> None:
        self._looked = False

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._looked and bool((scores != scores).any()):
            raise RosaError(
                "the model's logits are not numbers (NaN), so it has no answers to score: its "
                "weights or the adapter's are damaged, or overflow in this precision (--dtype "
                "float32 tells)"
            )
        self._looked = True
        return scores


def left_padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Rows of ids as one (rows, longest) int64 tensor; short ones get `value` on the left."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.tensor(list(row)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side="left")


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a response: the tokenizer's and those of the model's settings."""
    settings = model.generation_config.eos_token_id
    stops = set(settings if isinstance(settings, list) else [settings])
    return sorted(t for t in stops | {tokenizer.eos_token_id} if t is not None)


def _response(tokenizer: Any, ids: list[int], stops: list[int], until: str | None) -> Response:
    """Of the `ids` up to an end token; tokens count that one too."""
    length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:length], skip_special_tokens=True)
    if until:
        text = text.split(until)[0]
    return Response(text.strip(), min(length + 1, len(ids)))
