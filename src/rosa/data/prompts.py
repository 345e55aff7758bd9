"""Prompts: a question in a template, after few-shot examples if there are any.

`alpaca` is the instruction template of the LLM-Adapters suite (Alpaca's wording), `plain` the
question as it is, `chat` the chat template that an instruct model's tokenizer brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rosa.data.row_files import optional_text_field, text_field
from rosa.errors import RosaError, errors_as

PROMPTS = ("alpaca", "plain", "chat")
# Text that begins the next example: a model that invents one has ended its response.
NEXT_EXAMPLE = {"alpaca": "Below is an instruction that describes a task", "plain": "\n\n"}

# In the tokenizer_config.json of an adapter: the template of most rows that it was trained on.
TEMPLATE_KEY = "prompt_template"

_PROBE = "Zqx"  # text that no template has

_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides "
    "further context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Question:
    """What one row asks: its instruction and the input that goes with it, if any."""

    instruction: str
    input: str = ""

    @property
    def normalized(self) -> str:
        """Equal for two questions that differ only in white space and case."""
        return normalize_question(f"{self.instruction} {self.input}")


@dataclass(frozen=True)
class Shot:
    """A worked example: a question with the response that training would teach."""

    question: Question
    response: str


def read_question(row: dict[str, Any], source: str, number: int) -> Question:
    """The `instruction` and the optional `input` of a row; errors name source and row number."""
    context = optional_text_field(row, "input", source, number)
    return Question(text_field(row, "instruction", source, number), context)


def normalize_question(text: str) -> str:
    """The text without white space and case, which two equal questions share.

    >>> normalize_question("How many are in the box ?") == normalize_question("how many\\nare in "
    ...     "the box?")
    True
    """
    return "".join(text.split()).casefold()


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The prompt for one example, ending where the response begins.

    >>> instruction_prompt("Say hi.").splitlines()[-1]
    '### Response:'
    """
    template = _WITH_INPUT if input else _WITHOUT_INPUT
    return template.format(instruction=instruction, input=input)


def render(
    style: str, question: Question, shots: Sequence[Shot] = (), tokenizer: Any = None
) -> str:
    """The whole prompt in one of `PROMPTS`; `chat` needs the tokenizer.

    >>> render("plain", Question("2+3="), [Shot(Question("1+1="), "2")])
    '1+1= 2\\n\\n2+3='
    """
    if style == "chat":
        return chat_prompt(tokenizer, chat_turns(question, shots))
    ask = instruction_prompt if style == "alpaca" else str.__add__
    done = [_joined(ask(s.question.instruction, s.question.input), s.response) for s in shots]
    return "\n\n".join([*done, ask(question.instruction, question.input)])


def _joined(prompt: str, response: str) -> str:
    return prompt + ("" if prompt[-1:].isspace() else " ") + response.strip()


def chat_turns(question: Question, shots: Sequence[Shot] = ()) -> list[dict[str, str]]:
    """The conversation so far: each shot a user's and an assistant's turn, then the question."""
    turns = []
    for shot in shots:
        turns.append({"role": "user", "content": _user_turn(shot.question)})
        turns.append({"role": "assistant", "content": shot.response.strip()})
    return [*turns, {"role": "user", "content": _user_turn(question)}]


def _user_turn(question: Question) -> str:
    parts = (question.instruction.strip(), question.input.strip())
    return "\n\n".join(part for part in parts if part)


def chat_prompt(tokenizer: Any, turns: Sequence[dict[str, Any]]) -> str:
    """`turns`, whose content is text, in the chat template, up to where a reply begins."""
    check_chat_template(tokenizer)
    return chat_text(tokenizer, _as_read(tokenizer, turns))


def chat_text(
    tokenizer: Any,
    turns: Sequence[dict[str, Any]],
    *,
    add_generation_prompt: bool = True,
    where: str = "",
    tools: Any = None,
) -> str:
    """`turns` in the tokenizer's chat template, by default up to where a reply begins.

    The text has the template's special tokens: encode it without adding others.
    Raises RosaError, beginning with `where`, if the template raises an error about these turns, or
    has no place for `tools`.
    """
    options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    with errors_as(f"{where}the tokenizer's chat template cannot render {len(turns)} turns"):
        text = tokenizer.apply_chat_template(list(turns), **options)
        without = text if tools else None
        if tools:
            text = tokenizer.apply_chat_template(list(turns), tools=tools, **options)
    if text == without:
        raise RosaError(f"{where}the chat template has no place for `tools`; remove them")
    return text


def in_parts(turn: dict[str, Any]) -> dict[str, Any]:
    """`turn` with its content in parts, which templates of multimodal models read."""
    return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


def _as_read(tokenizer: Any, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`turns`, in parts where the chat template leaves out other content."""
    read = _PROBE in chat_text(tokenizer, [{"role": "user", "content": _PROBE}])
    return list(turns) if read else [in_parts(turn) for turn in turns]


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that closes an assistant's turn in the chat template; None if it has none.

    It need not be `eos_token`: in many base models that one ends the text.
    """
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
    text = chat_text(tokenizer, _as_read(tokenizer, turns), add_generation_prompt=False)
    after = text.rpartition(_PROBE)[2]
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in ids if token in special), None)


def check_chat_template(tokenizer: Any) -> None:
    """Raises RosaError where the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise RosaError(
            "this model's tokenizer has no chat template, so --prompt chat cannot be used; use an "
            "instruct model, or --prompt alpaca"
        )
