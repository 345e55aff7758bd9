"""The instruction template of the LLM-Adapters suite (Alpaca's wording)."""

from __future__ import annotations

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


def instruction_prompt(instruction: str, input: str = "") -> str:
    """The prompt for one example, ending where the response begins.

    >>> instruction_prompt("Say hi.").splitlines()[-1]
    '### Response:'
    """
    template = _WITH_INPUT if input else _WITHOUT_INPUT
    return template.format(instruction=instruction, input=input)
