"""A conversation with a model, in the prompt that it was trained with, streamed as it replies.

In its chat template a prompt holds every turn so far. Alpaca's instruction prompt and the plain one
hold one turn: training never showed the model another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from rosa.data.prompts import Question, chat_prompt, end_of_turn, render
from rosa.data.tokenization import encode_prompts
from rosa.errors import RosaError
from rosa.evaluate.generation import end_tokens, generate, max_positions
from rosa.evaluate.stopping import settled_text


@dataclass
class Conversation:
    """Turns and replies of one model.

    Attributes:
        template: `chat`, `alpaca` or `plain`, as in `rosa.data.prompts.PROMPTS`.
        system: the system message of a chat.
        temperature: of sampling; 0 is greedy decoding.
        use_adapter: False for the base model of an adapted `model`.
        turns: `{role, content}` of every turn that had a reply, the system message first.
    """

    model: Any
    tokenizer: Any
    template: str
    system: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 512
    use_adapter: bool = True
    turns: list[dict[str, str]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.system is not None:
            check_system(self.tokenizer, self.template, self.system)
            self.turns.append({"role": "system", "content": self.system})

    def prompt(self, text: str) -> str:
        """What the model is given for the user's turn `text`."""
        if self.template != "chat":
            return render(self.template, Question(text))
        return chat_prompt(self.tokenizer, [*self.turns, {"role": "user", "content": text}])

    def reply(
        self,
        text: str,
        on_text: Callable[[str], Any] = lambda new: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> str:
        """The reply to the user's turn `text`; it ends once `stop()` is true.

        `on_text` receives the reply in pieces, as soon as no later token can change them. A turn
        without a reply is not kept.
        """
        chat = self.template == "chat"
        [ids] = encode_prompts(self.tokenizer, [self.prompt(text)], add_special_tokens=not chat)
        self._warn_of_length(len(ids))
        stop_token = end_of_turn(self.tokenizer) if chat else None
        stops = end_tokens(self.model, self.tokenizer, stop_token)
        streamer = SettledTextStreamer(self.tokenizer, stops, on_text)
        with nullcontext() if self.use_adapter else self.model.disable_adapter():
            [response] = generate(
                self.model,
                self.tokenizer,
                [ids],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                stop_when=lambda _: stop(),
                stop_token=stop_token,
                streamer=streamer,
            )
        on_text(response.text[len(streamer.text) :])
        if response.text:
            self.turns.append({"role": "user", "content": text})
            self.turns.append({"role": "assistant", "content": response.text})
        return response.text

    def _warn_of_length(self, tokens: int) -> None:
        longest = max_positions(self.model)
        if tokens + self.max_new_tokens > longest:
            warnings.warn(
                f"the conversation and its next reply may be longer than the model's {longest} "
                "positions, where replies become worse; start a new one",
                stacklevel=3,
            )


class SettledTextStreamer:
    """A streamer for `generate` whose pieces add up to a beginning of the whole reply.

    Transformers' `TextStreamer` decodes each line on its own, which loses the spaces at its
    beginning with SentencePiece tokenizers.
    """

    def __init__(
        self, tokenizer: Any, stops: Collection[int], on_text: Callable[[str], Any]
    ) -> None:
        self._tokenizer, self._stops, self._on_text = tokenizer, stops, on_text
        self._tokens: list[int] | None = None
        self.text = ""

    def put(self, value: Any) -> None:
        """Receives the (1, tokens) prompt first, then each new token as (1,)."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += [token for token in value.tolist() if token not in self._stops]
        text = settled_text(self._tokens, self._tokenizer)
        if len(text) > len(self.text):
            self._on_text(text[len(self.text) :])
            self.text = text

    def end(self) -> None:
        """`Conversation.reply` passes on the rest of the text."""


def check_system(tokenizer: Any, template: str, system: str) -> None:
    """Raises RosaError where prompts of `template` have no place for a system message."""
    if template != "chat":
        raise RosaError(f"--system needs a chat template; {template} prompts have none")
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "x"}]
    if system.strip() not in chat_prompt(tokenizer, turns):
        raise RosaError("the chat template leaves out the system message; leave out --system")
