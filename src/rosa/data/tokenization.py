"""Training rows to token ids and labels, and prompts to token ids.

A row is one of LLM-Adapters' (`instruction`, `input`, `output`), a pair (`prompt`, `completion`),
or a conversation (`messages`). The prompt's labels are masked unless the recipe trains on it too.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rosa.data.prompts import chat_text, in_parts, read_question, render
from rosa.data.row_files import check_text, text_field
from rosa.errors import RosaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LocatedRow = tuple[str, int, dict[str, Any]]  # source, row number, row
Encoded = tuple[list[int], list[int]]  # input_ids, labels

IGNORE_INDEX = -100
TOKENIZE_BATCH = 1000  # rows that the tokenizer is given at a time
KNOWN_FORMS = (
    "`instruction` and `output` (LLM-Adapters), `prompt` and `completion`, `messages` (chat), or "
    "`conversations` (ShareGPT); `columns` names them where they are called otherwise"
)


@dataclass
class TokenizedRows:
    """Tokenized rows, and how many were cut or left out.

    Attributes:
        rows: dicts of `input_ids` and `labels`, lists of int of equal length.
        truncated: number of rows cut at `max_length`.
        dropped: number of rows left out: too long, or without a label after the cut.
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
    chat template has its special tokens already (`add_special_tokens=False`) and is kept whole.
    """
    if not prompts:
        return []
    encoded = tokenizer(list(prompts), add_special_tokens=add_special_tokens)
    rows: list[list[int]] = encoded["input_ids"]
    if not add_special_tokens:
        return rows
    end = tokenizer.eos_token_id
    # A lone token stays: it may be the beginning of text too, and generation needs a token.
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in rows]


def fingerprint_of(*parts: Sequence[dict[str, list[int]]]) -> str:
    """A hash of tokenized rows in their order."""
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
    """Token ids and labels of every (source, row number, row), cut or dropped at `max_length`.

    Raises:
        RosaError: a row has none of the known forms, an empty response, or turns that the chat
            template rejects (the message names source and row), or the tokenizer has no chat
            template or no end-of-text token.
    """
    found = TokenizedRows()
    for ids, labels in _encode(rows, tokenizer):
        if train_on_prompt:
            labels = list(ids)
        if len(ids) > max_length:
            ids, labels = ids[:max_length], labels[:max_length]
            # A response that begins beyond the cut leaves nothing to learn from.
            if overlong == "drop" or all(label == IGNORE_INDEX for label in labels):
                found.dropped += 1
                continue
            found.truncated += 1
        found.rows.append({"input_ids": ids, "labels": labels})
    return found


def _encode(rows: Iterable[LocatedRow], tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoded]:
    """Ids and labels of every row in order. A fast tokenizer encodes a batch in threads."""
    rows = iter(rows)
    while batch := list(itertools.islice(rows, TOKENIZE_BATCH)):
        chats = ["messages" in row for _, _, row in batch]
        texts = [
            (_chat_texts if chat else _pair_texts)(row, source, number, tokenizer)
            for (source, number, row), chat in zip(batch, chats, strict=True)
        ]
        encoded = {}
        for kind in (False, True):
            chosen = [own for own, chat in zip(texts, chats, strict=True) if chat == kind]
            flat = list(itertools.chain.from_iterable(chosen))
            encoded[kind] = iter(encode_prompts(tokenizer, flat, add_special_tokens=not kind))
        for chat, own in zip(chats, texts, strict=True):
            ids = list(itertools.islice(encoded[chat], len(own)))
            if chat:
                yield from _chat_labels(ids)
            else:
                yield _pair_labels(ids, own, tokenizer)


def prompt_template(row: dict[str, Any]) -> str:
    """The template, one of `rosa.data.prompts.PROMPTS`, of the prompt that is made from `row`."""
    return "chat" if "messages" in row else "alpaca" if "instruction" in row else "plain"


def check_row(row: dict[str, Any], source: str, number: int) -> None:
    """Raises RosaError for a row that cannot be tokenized, whatever the tokenizer."""
    if "messages" in row:
        _read_messages(row["messages"], f"{source}, row {number}")
    else:
        _read_pair(row, source, number)


def _pair_texts(
    row: dict[str, Any], source: str, number: int, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The prompt alone, and with the response."""
    if tokenizer.eos_token_id is None:
        raise RosaError(
            "the model's tokenizer has no end-of-text token (eos_token), so nothing would "
            "teach the model where a response ends; set one in its tokenizer_config.json"
        )
    prompt, response = _read_pair(row, source, number)
    return [prompt, prompt + response]


def _read_pair(row: dict[str, Any], source: str, number: int) -> tuple[str, str]:
    """The prompt and the response."""
    if "instruction" in row:
        prompt = render("alpaca", read_question(row, source, number))
        response = text_field(row, "output", source, number)
    elif "prompt" in row:
        prompt = text_field(row, "prompt", source, number)
        response = text_field(row, "completion", source, number)
    else:
        fields = ", ".join(map(str, row)) or "nothing"
        raise RosaError(f"{source}, row {number}: a row needs {KNOWN_FORMS}; this one has {fields}")
    if not response.strip():
        raise RosaError(
            f"{source}, row {number}: the response is empty; remove the row or fill it in"
        )
    return prompt, response


def _pair_labels(
    ids: list[list[int]], texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> Encoded:
    """The prompt exactly as generation will see it, then the response and the end of text."""
    before, whole = ids
    if whole[: len(before)] == before:
        after = whole[len(before) :]
    else:  # a token spans the border: training must not see a prompt that is never given
        response = texts[1][len(texts[0]) :]
        after = tokenizer(response, add_special_tokens=False)["input_ids"]
    after = [*after, tokenizer.eos_token_id]
    return before + after, [IGNORE_INDEX] * len(before) + after


def _chat_texts(
    row: dict[str, Any], source: str, number: int, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """The conversation as text; then, per assistant turn, its prompt and the text to its end."""
    where = f"{source}, row {number}"
    messages = _read_messages(row["messages"], where)
    if not tokenizer.chat_template:
        raise RosaError(
            f"{where}: a chat row needs a tokenizer with a chat template, and this model has none; "
            "use an instruct model or rows of `prompt` and `completion`"
        )
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    parts = [messages, *(part for i in turns for part in (messages[:i], messages[: i + 1]))]

    def texts(as_parts: bool) -> list[str]:
        return [
            chat_text(
                tokenizer,
                [in_parts(message) for message in part] if as_parts else part,
                add_generation_prompt=i % 2 == 1,
                where=f"{where}: ",
                tools=row.get("tools"),
            )
            for i, part in enumerate(parts)
        ]

    def hold_replies(found: list[str]) -> bool:
        replies = (_reply_parts(messages[i]) for i in turns)
        pairs = zip(replies, found[2::2], strict=True)
        return all(part in text for reply, text in pairs for part in reply)

    if hold_replies(found := texts(as_parts=False)):
        return found
    with suppress(RosaError):  # templates of multimodal models read content in parts
        if hold_replies(found := texts(as_parts=True)):
            return found
    raise RosaError(
        f"{where}: the chat template leaves out or changes an assistant's text or tool calls, so "
        "there is no reply to learn; use a tokenizer with another chat_template"
    )


def _reply_parts(message: dict[str, Any]) -> list[str]:
    """Texts of an assistant's turn that its template must write."""
    return [message["content"].split("</think>")[-1].strip(), *_called(message)]


def _called(message: dict[str, Any]) -> list[Any]:
    """Names of the functions that a turn calls, in OpenAI's form or without its `function`."""
    calls = message.get("tool_calls") or ()
    return [call.get("function", call)["name"] for call in calls]


def _chat_labels(encoded: list[list[int]]) -> Iterator[Encoded]:
    """Ids and labels of a conversation from the ids of `_chat_texts`; every reply has labels.

    One row, or one for each reply where the template rewrites earlier turns (Qwen3's leaves out
    their reasoning), so that each is learned as generation will see its prompt.
    """
    ids, *parts = encoded
    replies = list(zip(parts[::2], parts[1::2], strict=True))
    if any(ids[: len(through)] != through for _, through in replies):
        for prompt, through in replies:
            start = _reply_start(prompt, through)
            yield through, [IGNORE_INDEX] * start + through[start:]
        return
    labels = [IGNORE_INDEX] * len(ids)
    for prompt, through in replies:
        start = _reply_start(prompt, ids)
        labels[start : len(through)] = ids[start : len(through)]
    yield ids, labels


def _reply_start(prompt: list[int], ids: list[int]) -> int:
    # The prompt may open the reply with tokens that the conversation lacks (<think>).
    pairs = enumerate(zip(prompt, ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(ids)))


def _read_messages(messages: Any, where: str) -> list[dict[str, Any]]:
    """The turns with their content as text, also where it was given in parts."""
    if not isinstance(messages, list):
        raise RosaError(f"{where}: `messages` must be a list of {{role, content}} texts")
    read = [_read_message(message, where) for message in messages]
    if read and read[0]["role"] == "assistant":
        raise RosaError(f"{where}: the first turn is the assistant's; add the turn it replies to")
    replies = [m for m in read if m["role"] == "assistant"]
    if not any(m["content"].strip() or m.get("tool_calls") for m in replies):
        raise RosaError(f"{where}: no assistant turn has text, so there is nothing to learn")
    return read


def _read_message(message: Any, where: str) -> dict[str, Any]:
    if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
        raise RosaError(f"{where}: `messages` must be a list of {{role, content}} texts")
    # A column of messages has every key in every turn, null where there is none.
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    try:
        named = all(isinstance(name, str) for name in _called(message))
    except (AttributeError, KeyError, TypeError):
        named = False
    if not named:
        raise RosaError(f"{where}: each of `tool_calls` needs a function with a `name`")
    if content is None and message.get("tool_calls"):
        content = ""  # templates write null and "" alike, except for those that write "None"
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [text for text in parts if isinstance(text, str)]
        if len(texts) < len(parts):
            raise RosaError(f"{where}: content in parts must be text; images are not supported")
        content = "".join(texts)
    if not isinstance(content, str):
        raise RosaError(
            f"{where}: the {message['role']}'s `content` must be text, found {content!r:.60}; only "
            "a turn with `tool_calls` may lack it"
        )
    check_text(content, f"{where}: a message")
    return {**message, "content": content}
