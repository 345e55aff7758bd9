"""Training rows to tokens: what the model reads and what the loss sees."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from rosa.data.prompts import Question, instruction_prompt, render
from rosa.data.splits import hold_out, sample
from rosa.data.tokenization import IGNORE_INDEX, encode_prompts, tokenize_rows
from rosa.errors import RosaError
from tests.support.tiny_folder import word_tokenizer

TOKENIZER = word_tokenizer()
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s>{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)
USER, REPLY = {"role": "user", "content": "How"}, {"role": "assistant", "content": "12"}
WORDS = st.lists(st.sampled_from(["answer1", "12", "the", "true", "."]), min_size=1, max_size=8)


def one(record: dict, **options: object) -> dict[str, list[int]]:
    [row] = tokenize_rows([("rows.json", 1, record)], TOKENIZER, max_length=500, **options).rows
    return row


@given(WORDS, WORDS)
@settings(max_examples=30, deadline=None)
def test_the_loss_sees_the_response_and_its_end_only(prompt: list[str], reply: list[str]) -> None:
    row = one({"prompt": " ".join(prompt) + " ", "completion": " ".join(reply)})
    seen = [label for label in row["labels"] if label != IGNORE_INDEX]
    assert TOKENIZER.convert_ids_to_tokens(seen) == [*reply, "</s>"]
    assert row["input_ids"][-len(seen) :] == seen
    # What comes before is exactly what generation is given.
    assert row["input_ids"][: -len(seen)] == encode_prompts(TOKENIZER, [" ".join(prompt) + " "])[0]


def test_a_prompt_is_the_same_tokens_in_training_and_generation() -> None:
    """Also with a tokenizer that appends its end-of-text token, and in a chat template."""
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    begin, *body, end = tokenizer("How many")["input_ids"]
    assert (begin, end) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert encode_prompts(tokenizer, ["How many"]) == [[begin, *body]]
    pair = {"prompt": "How many", "completion": " 12"}
    turn = {"role": "user", "content": "How many"}
    chat = {"messages": [turn, {"role": "assistant", "content": "12"}]}
    rows = tokenize_rows([("d", 1, pair), ("d", 2, chat)], tokenizer, max_length=99).rows
    text = render("chat", Question("How many"), (), tokenizer)
    generated = [
        *encode_prompts(tokenizer, ["How many"]),
        *encode_prompts(tokenizer, [text], add_special_tokens=False),
    ]
    for row, prompt in zip(rows, generated, strict=True):
        assert row["input_ids"][: row["labels"].count(IGNORE_INDEX)] == prompt


def test_a_template_that_ends_a_prompt_with_the_end_token_keeps_it() -> None:
    assert encode_prompts(TOKENIZER, ["How </s>"], add_special_tokens=False)[0][-1] == 2


def test_a_chat_template_that_raises_is_named_with_its_row() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with pytest.raises(RosaError, match=r"c, row 3: .*cannot render 2 turns: Roles must alternate"):
        tokenize_rows([("c", 3, {"messages": [USER, REPLY]})], tokenizer, max_length=9)


def test_the_three_forms_give_the_same_text() -> None:
    pair = {"prompt": instruction_prompt("How many", "12"), "completion": "answer1"}
    instruction = {"instruction": "How many", "input": "12", "output": "answer1", "answer": "x"}
    assert one(pair) == one(instruction)


def test_training_on_the_prompt_is_an_option() -> None:
    row = one({"prompt": "How many ", "completion": "12"}, train_on_prompt=True)
    assert row["labels"] == row["input_ids"]


def test_chat_rows_learn_every_assistant_turn() -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    messages = [
        {"role": "user", "content": "How many"},
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "true ."},
    ]
    [row] = tokenize_rows([("c", 1, {"messages": messages})], tokenizer, max_length=99).rows
    seen = [token for token in row["labels"] if token != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(seen) == ["12", "</s>", "true", ".", "</s>"]


def test_a_prompt_that_opens_the_reply_hides_none_of_it() -> None:
    # As reasoning models' templates do: generation starts with <think>, kept replies lack it.
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("assistant{%", "assistant the the{%")
    messages = [{"role": "user", "content": "How"}, {"role": "assistant", "content": "12 true ."}]
    [row] = tokenize_rows([("c", 1, {"messages": messages})], tokenizer, max_length=99).rows
    seen = [token for token in row["labels"] if token != IGNORE_INDEX]
    assert tokenizer.convert_ids_to_tokens(seen) == ["12", "true", ".", "</s>"]


def test_without_an_end_of_text_token_nothing_is_taught() -> None:
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(RosaError, match="no end-of-text token"):
        tokenize_rows([("d", 1, {"prompt": "a", "completion": "12"})], tokenizer, max_length=9)


def test_long_rows_are_counted() -> None:
    rows = [
        ("d", 1, {"prompt": "the the ", "completion": "12"}),  # 4 tokens with the end
        ("d", 2, {"prompt": "the the ", "completion": "12 12 12"}),  # 6: cut
        ("d", 3, {"prompt": "the the the the the ", "completion": "12"}),  # nothing left
    ]
    cut = tokenize_rows(rows, TOKENIZER, max_length=5)
    assert (len(cut.rows), cut.truncated, cut.dropped) == (2, 1, 1)
    assert max(len(row["input_ids"]) for row in cut.rows) == 5
    dropped = tokenize_rows(rows, TOKENIZER, max_length=5, overlong="drop")
    assert (len(dropped.rows), dropped.truncated, dropped.dropped) == (1, 0, 2)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"question": "x"}, "`instruction` and `output`.*this one has question"),
        ({"instruction": "x"}, "'output' is missing"),
        ({"instruction": "x", "output": 3}, "'output' must be text.*int"),
        ({"prompt": "x", "completion": " "}, "response is empty"),
        ({"instruction": "x", "input": 3, "output": "y"}, "'input' must be text.*int"),
        ({"messages": [USER, REPLY]}, "needs a tokenizer with a chat template"),
    ],
)
def test_a_bad_row_is_named(record: dict, words: str) -> None:
    with pytest.raises(RosaError, match=f"rows.json, row 7.*{words}"):
        tokenize_rows([("rows.json", 7, record)], TOKENIZER, max_length=9)


@pytest.mark.parametrize(
    "messages",
    [
        "hi",
        [{"role": "user"}],
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": "a"}],
    ],
)
def test_a_bad_conversation_is_named(messages: object) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(RosaError, match="c, row 1"):
        tokenize_rows([("c", 1, {"messages": messages})], tokenizer, max_length=9)


@given(st.integers(1, 60), st.floats(0, 0.9), st.integers(0, 5))
def test_the_split_is_seeded_and_loses_nothing(count: int, share: float, seed: int) -> None:
    rows = list(range(count))
    if round(share * count) >= count:
        with pytest.raises(RosaError, match="leaves none to train on"):
            hold_out(rows, share, seed)
        return
    train, held = hold_out(rows, share, seed)
    assert sorted(train + held) == rows
    assert len(held) == round(share * count)
    assert hold_out(rows, share, seed) == (train, held)


@given(st.integers(1, 60), st.integers(1, 70))
def test_a_limit_is_a_seeded_sample_in_order(count: int, limit: int) -> None:
    rows = list(range(count))
    taken = sample(rows, limit, 3)
    assert len(taken) == min(count, limit)
    assert taken == sorted(set(taken))
    assert taken == sample(rows, limit, 3)
