"""The options of an evaluation: those of `rosa evaluate`, and a grid's `evaluate` keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rosa.data.prompts import PROMPTS
from rosa.errors import RosaError
from rosa.evaluate.answer_filters import PROTOCOLS


@dataclass(frozen=True)
class EvaluationOptions:
    """How a model is asked and its answers are scored.

    Args:
        data: folder with `<task>/test.json`; null loads test sets from the hub.
        batch_size: prompts per batch.
        limit: score a seeded sample of this many examples per task; null scores all.
        seed: seed of that sample and of the worked examples.
        num_beams: 1 is greedy decoding; the published suite used 4.
        max_new_tokens: length of a response; null is the task's own.
        protocol: whose rules read the answers.
        full_responses: generate responses to their end, also where the protocol has found the
            answer. Scores are the same; other protocols can read the responses (`--rescore`).
        prompt: template around a question (`chat` is the model's own); null is the task's.
        num_fewshot: worked examples before each question; null is none.
        fewshot_data: training rows to draw them from; null is `train.json` next to the test set.
        forgetting: plain text to measure an adapter's forgetting on: a file, `wikitext` (from the
            hub), `rosa-tiny`, or `auto`, which fits the base model; null does not measure it.
    """

    data: str | None = None
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    num_beams: int = 1
    max_new_tokens: int | None = None
    protocol: Literal["llm-adapters", "strict"] = "llm-adapters"
    full_responses: bool = False
    prompt: Literal["alpaca", "plain", "chat"] | None = None
    num_fewshot: int | None = None
    fewshot_data: str | None = None
    forgetting: str | None = None

    def check(self) -> None:
        """Raises RosaError for a value out of range, an unknown name, or an option without use."""
        for key in ("batch_size", "limit", "num_beams", "max_new_tokens", "num_fewshot"):
            value, least = getattr(self, key), 0 if key == "num_fewshot" else 1
            if value is not None and value < least:
                raise RosaError(f"{key} must be at least {least}, not {value}")
        for key, known in (("protocol", PROTOCOLS), ("prompt", (None, *PROMPTS))):
            if getattr(self, key) not in known:
                names = ", ".join(name for name in known if name)
                raise RosaError(f"unknown {key} {getattr(self, key)!r}; choose from {names}")
        if self.fewshot_data is not None and not self.num_fewshot:
            raise RosaError("fewshot_data is only used with num_fewshot; set num_fewshot too")

    @property
    def settings(self) -> dict[str, Any]:
        """What of the options the answers in a folder depend on."""
        return {
            "protocol": self.protocol,
            "num_beams": self.num_beams,
            "limit": self.limit,
            "seed": self.seed,
            "full_responses": not self.may_cut_responses,
        }

    @property
    def may_cut_responses(self) -> bool:
        """Whether a response may end before its end-of-text token, once its answer is decided."""
        return (
            not self.full_responses
            and self.num_beams == 1
            and any(rule.decided for rule in PROTOCOLS[self.protocol].values())
        )


DEFAULT_OPTIONS = EvaluationOptions()
