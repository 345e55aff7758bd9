"""Training rows to token ids: which tokens are read, and which of them the loss sees.

A row is one of LLM-Adapters' (`instruction`, `input`, `output`), a pair (`prompt`, `completion`),
or a conversation (`messages`). The prompt's labels are masked unless the recipe trains on it too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rosa.data.json_rows import text_field
from rosa.data.prompts import chat_text, instruction_prompt
from rosa.errors import RosaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LocatedRow = tuple[str, int, dict[str, Any]]  # source, row number, record
Encoded = tuple[list[int], list[int]]  # ids, labels

IGNORE_INDEX = -100
TOKENIZE_BATCH = 1000  # rows that the tokenizer is given at a time
KNOWN_FORMS = (
    "`instruction` and `output` (LLM-Adapters), `prompt` and `completion`, or `messages` (chat)"
)


@dataclass
class TokenizedRows:
    """Tokenised rows, and what became of the others.

    Attributes:
        rows: dicts of `input_ids` and `labels`, lists of int of equal length.
        truncated: number of rows cut at `max_length`.
        dropped: number of rows left out: too long, or nothing to learn after the cut.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    truncated: int = 0
    dropped: int = 0

    def report(self) -> str:
        """One line for the terminal."""
        longest = max((len(row["input_ids"]) for row in self.rows), default=0)
        return (
            f"{len(self.rows)} rows, longest {longest} tokens; "
            f"{self.truncated} truncated, {self.dropped} dropped"
        )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of each prompt, the same in training, generation and inspection.

    An end-of-text token that the tokenizer appends is removed: the response comes next. Text in a
    chat template holds its special tokens already (`add_special_tokens=False`) and is kept whole.
    """
    encoded: list[list[int]] = tokenizer(list(prompts), add_special_tokens=add_special_tokens)[
        "input_ids"
    ]
    if not add_special_tokens:
        return encoded
    end = tokenizer.eos_token_id
    # A lone token stays: it may be the beginning of text too, and generation needs a token.
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in encoded]


def fingerprint_of(*parts: Sequence[dict[str, list[int]]]) -> str:
    """A hash of tokenised rows, in their order: other rows make another run."""
    hasher = hashlib.sha256()
    for part in parts:
        for row in part:
            hasher.update(json.dumps(row, sort_keys=True).encode())
        hasher.update(b"|")
    return hasher.hexdigest()


def tokenize_rows(
    rows: Iterable[LocatedRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    overlong: Literal["truncate", "drop"] = "truncate",
    train_on_prompt: bool = False,
) -> TokenizedRows:
    """Token ids and labels of every (source, row number, record), cut or dropped at `max_length`.

    Raises:
        RosaError: a row has none of the known forms, an empty response, or a chat row meets a
            tokenizer without a chat template; the sentence names the source and the row. Or the
            tokenizer has no end-of-text token.
    """
    examples = TokenizedRows()
    for ids, labels in _encoded(rows, tokenizer):
        if train_on_prompt:
            labels = list(ids)
        if len(ids) > max_length:
            ids, labels = ids[:max_length], labels[:max_length]
            # A response that begins beyond the cut leaves nothing to learn from.
            if overlong == "drop" or all(label == IGNORE_INDEX for label in labels):
                examples.dropped += 1
                continue
            examples.truncated += 1
        examples.rows.append({"input_ids": ids, "labels": labels})
    return examples


def _encoded(rows: Iterable[LocatedRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Ids and labels of every row in order. A fast tokenizer does many texts at once in threads."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, TOKENIZE_BATCH)):
        pairs: dict[int, tuple[str, str]] = {}
        chats: dict[int, tuple[str, Any]] = {}
        for place, (source, number, record) in enumerate(chunk):
            if "messages" in record:
                where = f"{source}, row {number}"
                _check_chat(record["messages"], tokenizer, where)
                chats[place] = where, record["messages"]
            else:
                pairs[place] = _pair(record, source, number)
        found = dict(zip(pairs, _encode_pairs(list(pairs.values()), tokenizer), strict=True))
        found |= dict(zip(chats, _encode_chats(list(chats.values()), tokenizer), strict=True))
        yield from (found[place] for place in range(len(chunk)))


def _pair(record: dict[str, Any], source: str, number: int) -> tuple[str, str]:
    """The prompt and the response of a row that is no conversation."""
    if "instruction" in record:
        prompt = instruction_prompt(
            text_field(record, "instruction", source, number), record.get("input") or ""
        )
        response = text_field(record, "output", source, number)
    elif "prompt" in record:
        prompt = text_field(record, "prompt", source, number)
        response = text_field(record, "completion", source, number)
    else:
        found = ", ".join(map(str, record)) or "nothing"
        raise RosaError(f"{source}, row {number}: a row needs {KNOWN_FORMS}; this one has {found}")
    if not response.strip():
        raise RosaError(
            f"{source}, row {number}: the response is empty; remove the row or fill it in"
        )
    return prompt, response


def _encode_pairs(
    pairs: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Encoded]:
    """The prompt exactly as generation will see it, then the response and the end of text."""
    if not pairs:
        return
    if tokenizer.eos_token_id is None:
        raise RosaError(
            "the model's tokenizer has no end-of-text token (eos_token), so nothing would "
            "teach the model where a response ends; name one in its tokenizer_config.json"
        )
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
    wholes = encode_prompts(tokenizer, [prompt + response for prompt, response in pairs])
    for (_, response), before, whole in zip(pairs, prompts, wholes, strict=True):
        if whole[: len(before)] == before:
            after = whole[len(before) :]
        else:  # a token spans the border: training must not see a prompt that is never given
            after = tokenizer(response, add_special_tokens=False)["input_ids"]
        after = [*after, tokenizer.eos_token_id]
        yield before + after, [IGNORE_INDEX] * len(before) + after


def _check_chat(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    if not tokenizer.chat_template:
        raise RosaError(
            f"{where}: a chat row needs a tokenizer with a chat template, and this model has none; "
            "use an instruct model or rows of `prompt` and `completion`"
        )
    _check_messages(messages, where)


def _encode_chats(
    chats: Sequence[tuple[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Encoded]:
    """Conversations in the model's chat template; the loss is on every assistant turn."""
    turns = [
        (where, messages, turn)
        for where, messages in chats
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    whole = _chat_ids(chats, tokenizer)
    prompts = iter(
        _chat_ids([(w, m[:turn]) for w, m, turn in turns], tokenizer, add_generation_prompt=True)
    )
    replies = iter(_chat_ids([(w, m[: turn + 1]) for w, m, turn in turns], tokenizer))
    for (where, messages), ids in zip(chats, whole, strict=True):
        labels = [IGNORE_INDEX] * len(ids)
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            # The prompt may open the reply with tokens that the conversation lacks (<think>).
            start, through = _shared_start(next(prompts), ids), next(replies)
            if ids[: len(through)] != through:
                raise RosaError(
                    f"{where}: this chat template rewrites earlier turns, so the reply of turn "
                    f"{turn + 1} cannot be located; keep one assistant turn per row"
                )
            labels[start : len(through)] = ids[start : len(through)]
        yield ids, labels


def _chat_ids(
    chats: Sequence[tuple[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool = False,
) -> list[list[int]]:
    """Token ids of each (where, messages), or of each with the start of a reply."""
    texts = []
    for where, messages in chats:
        try:
            texts.append(
                chat_text(tokenizer, messages, add_generation_prompt=add_generation_prompt)
            )
        except RosaError as error:
            raise RosaError(f"{where}: {error}") from error
    return encode_prompts(tokenizer, texts, add_special_tokens=False) if texts else []


def _shared_start(left: list[int], right: list[int]) -> int:
    """How many leading ids both have."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))


def _check_messages(messages: Any, where: str) -> None:
    well_formed = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not well_formed:
        raise RosaError(f"{where}: `messages` must be a list of {{role, content}} texts")
    if messages and messages[0]["role"] == "assistant":
        raise RosaError(f"{where}: the assistant speaks first; add the turn it replies to")
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise RosaError(f"{where}: no assistant turn has any text, so there is nothing to learn")
