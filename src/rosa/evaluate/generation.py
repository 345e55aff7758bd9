"""Generation for evaluation (in batches) and chat, on Transformers' own `generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rosa.errors import RosaError
from rosa.evaluate.stopping import RowStoppingCriteria

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Response:
    """The text that a model generated for one prompt, and its number of tokens without padding."""

    text: str
    tokens: int


def longest_first_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Positions in batches of similar length, longest first: too large a batch fails at once.

    >>> longest_first_batches([3, 9, 5], batch_size=2)
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    until: str | None = None,
    stop_when: Callable[[str], bool] | None = None,
    stop_token: int | None = None,
    temperature: float = 0.0,
    streamer: Any = None,
) -> list[Response]:
    """The responses to a batch of tokenized prompts, padded on the left.

    A response ends before the text `until` and, in greedy decoding, with the token after which
    `stop_when` is true of its text. Of beams, the best is known only at the end. `stop_token` ends
    a response as the model's own end tokens do. `streamer` is Transformers', for one prompt.

    Of a model's generation config only the end tokens count: the protocol is plain greedy or beam
    search, the same for every model, or sampling with a `temperature` above 0.
    """
    import torch
    from transformers import GenerationConfig

    batch = tokenizer.pad(
        {"input_ids": [list(ids) for ids in prompts]}, padding_side="left", return_tensors="pt"
    ).to(model.device)
    stops, start = end_tokens(model, tokenizer, stop_token), batch["input_ids"].shape[1]
    stopping = RowStoppingCriteria(tokenizer, start, stops, until, stop_when, greedy=num_beams == 1)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=temperature > 0,
        temperature=temperature or None,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops or None,
    )
    try:
        with torch.inference_mode(), _generation_config(model, config):
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                logits_processor=[NanLogitsCheck()],
                stopping_criteria=[stopping] if until or stop_when else None,
                streamer=streamer,
            )
    except torch.OutOfMemoryError as error:
        one = len(prompts) == 1
        size = f"a prompt of {start}" if one else f"{len(prompts)} prompts of up to {start}"
        advice = "shorten it, or use --quantization nf4" if one else "lower --batch_size"
        raise RosaError(f"out of memory with {size} tokens; {advice}") from error
    rows = enumerate(output[:, start:].tolist())
    return [_response(tokenizer, ids[: stopping.lengths.get(i)], stops, until) for i, ids in rows]


@contextmanager
def _generation_config(model: Any, config: Any) -> Iterator[None]:
    """`config` in place of the model's own, whose settings `generate` would mix in."""
    owners = [model, *([model.get_base_model()] if hasattr(model, "get_base_model") else [])]
    before = [owner.generation_config for owner in owners]
    try:
        for owner in owners:
            owner.generation_config = config
        yield
    finally:
        for owner, own in zip(owners, before, strict=True):
            owner.generation_config = own


class NanLogitsCheck:
    """A logits processor that raises for NaN logits, from which `generate` would make some text.

    Only the first token of a batch is checked.
    """

    def __init__(self) -> None:
        self._checked = False

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self._checked and bool(scores.isnan().any()):
            raise RosaError(
                "the model's logits are NaN, so there are no answers to score: its weights or the "
                "adapter's are damaged, or overflow in this precision (try --dtype float32)"
            )
        self._checked = True
        return scores


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """The model in eval mode; its training mode is restored."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def max_positions(model: Any) -> float:
    """The number of positions that the model was made for; infinity where its config has none."""
    config = model.config.get_text_config()
    return getattr(config, "max_position_embeddings", None) or math.inf


def end_tokens(model: Any, tokenizer: Any, stop_token: int | None = None) -> list[int]:
    """Every token that ends a response: `stop_token`, the tokenizer's, the generation config's."""
    configured = model.generation_config.eos_token_id
    stops = set(configured if isinstance(configured, list) else [configured])
    return sorted(t for t in stops | {tokenizer.eos_token_id, stop_token} if t is not None)


def _response(tokenizer: Any, ids: list[int], stops: list[int], until: str | None) -> Response:
    """The response in `ids`; its token count includes the end token."""
    length = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    text = tokenizer.decode(ids[:length], skip_special_tokens=True)
    if until:
        text = text.split(until)[0]
    return Response(text.strip(), min(length + 1, len(ids)))
