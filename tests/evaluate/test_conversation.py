"""A conversation: the prompt of each turn, streamed replies, the base model beside its adapter."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3 import Gemma3Config
from transformers.models.mamba import MambaConfig

from rosa import RosaConfig
from rosa.data.prompts import instruction_prompt
from rosa.errors import RosaError
from rosa.evaluate.conversation import Conversation
from rosa.evaluate.generation import max_positions
from tests.support.adapters import randomize
from tests.support.tiny_folder import tiny_llama, word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TURNS = ["How many", "Please choose", "the correct answer"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    found = word_tokenizer()
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def model() -> PeftModel:
    adapted = get_peft_model(tiny_llama(), RosaConfig(r=4, r_low=1.0)).eval()
    randomize(adapted)
    return adapted


@torch.no_grad()
def greedy(model: Any, tokenizer: Any, prompt: str, special: bool, tokens: int = 8) -> str:
    """Without a cache, a streamer or `generate`."""
    ids = tokenizer(prompt, add_special_tokens=special, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    while ids.shape[1] < start + tokens:
        token = model(input_ids=ids).logits[0, -1].argmax()
        if token == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    return tokenizer.decode(ids[0, start:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("system", [None, "Please answer"])
def test_a_prompt_is_the_template_of_the_whole_conversation(model, tokenizer, system) -> None:
    talk = Conversation(model, tokenizer, "chat", system, max_new_tokens=8)
    messages = [{"role": "system", "content": system}] if system else []
    for text in TURNS:
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert talk.prompt(text) == prompt
        reply = talk.reply(text)
        assert reply == greedy(model, tokenizer, prompt, special=False) != ""
        messages.append({"role": "assistant", "content": reply})
    assert talk.turns == messages


def test_an_instruction_is_a_prompt_of_its_own(model, tokenizer) -> None:
    talk = Conversation(model, tokenizer, "alpaca", max_new_tokens=8)
    for text in TURNS:
        prompt = instruction_prompt(text)
        assert talk.prompt(text) == prompt
        assert talk.reply(text) == greedy(model, tokenizer, prompt, special=True)


def test_the_base_beside_its_adapter_says_what_it_says_alone(model, tokenizer) -> None:
    alone = Conversation(tiny_llama(), tokenizer, "chat", max_new_tokens=8)
    base, adapted = (
        Conversation(model, tokenizer, "chat", max_new_tokens=8, use_adapter=use)
        for use in (False, True)
    )
    apart = Conversation(model, tokenizer, "chat", max_new_tokens=8)
    for text in TURNS:
        assert base.reply(text) == alone.reply(text)
        assert adapted.reply(text) == apart.reply(text)
    assert base.turns == alone.turns != adapted.turns == apart.turns


def test_the_pieces_are_the_reply_and_come_while_it_is_generated(model, tokenizer) -> None:
    talk = Conversation(model, tokenizer, "plain", max_new_tokens=8)
    pieces: list[str] = []
    first: list[int] = []  # how many pieces there were at each token
    reply = talk.reply("How many", pieces.append, lambda: bool(first.append(len(pieces))))
    assert "".join(pieces) == reply
    assert len(set(first)) > 3


def test_a_reply_that_is_stopped_is_the_beginning_of_the_whole(model, tokenizer) -> None:
    whole = Conversation(model, tokenizer, "chat", max_new_tokens=8).reply(TURNS[0])
    talk = Conversation(model, tokenizer, "chat", max_new_tokens=8)
    pieces: list[str] = []
    reply = talk.reply(TURNS[0], pieces.append, lambda: len(pieces) == 2)
    assert "" != reply != whole
    assert whole.startswith(reply)
    assert [turn["content"] for turn in talk.turns] == [TURNS[0], reply]


def test_a_token_that_ends_a_turn_ends_the_reply(model, tokenizer) -> None:
    """It is the template's, neither the tokenizer's eos_token nor special, and is not text."""
    first = Conversation(model, tokenizer, "chat", max_new_tokens=8).reply(TURNS[0]).split()
    other = word_tokenizer()
    other.add_tokens(first[2], special_tokens=False)
    other.chat_template = TEMPLATE.replace("</s>", first[2])
    prompt = Conversation(model, other, "chat").prompt(TURNS[0])
    expected = greedy(model, other, prompt, special=False).split(first[2])[0].strip()
    pieces: list[str] = []
    talk = Conversation(model, other, "chat", max_new_tokens=8)
    assert talk.reply(TURNS[0], pieces.append) == "".join(pieces) == expected


def test_sampling_follows_the_seed(model, tokenizer) -> None:
    def sample(seed: int, temperature: float) -> str:
        torch.manual_seed(seed)
        talk = Conversation(model, tokenizer, "plain", None, temperature, max_new_tokens=12)
        return talk.reply("How many")

    assert sample(0, 2.0) == sample(0, 2.0)
    assert len({sample(seed, 2.0) for seed in range(4)}) > 1
    assert len({sample(seed, 0.0) for seed in range(4)}) == 1


def test_a_system_message_that_the_template_leaves_out_is_an_error(model) -> None:
    silent = word_tokenizer()
    silent.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RosaError, match="leaves out the system message"):
        Conversation(model, silent, "chat", "Please")
    with pytest.raises(RosaError, match="--system needs a chat template"):
        Conversation(model, silent, "alpaca", "Please")


def test_a_conversation_beyond_the_model_s_positions_warns(model, tokenizer) -> None:
    talk = Conversation(model, tokenizer, "plain", max_new_tokens=2)
    with pytest.warns(UserWarning, match="1024 positions"):
        talk.reply("How " * 1030)


def test_the_positions_of_a_vision_language_model_are_those_of_its_text_model() -> None:
    config = Gemma3Config(text_config={"max_position_embeddings": 77})
    assert max_positions(SimpleNamespace(config=config)) == 77
    assert max_positions(SimpleNamespace(config=MambaConfig())) == math.inf
