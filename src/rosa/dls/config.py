"""`DlsConfig`, the settings of DLS. No PyTorch here: adapter configurations embed this class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from rosa.dls.choice import POLICIES, SCORED_POLICIES, Policy
from rosa.errors import RosaError, check_choice, check_number, did_you_mean


@dataclasses.dataclass(frozen=True)
class DlsConfig:
    """What share of the layers is trained, how often they are chosen, and how.

    Args:
        k_ratio: share of the layers that train after the first choice, 0 < k_ratio <= 1.
        interval: u, layers are chosen at every u-th optimizer step.
        p_exploit: probability of the layers with the highest scores; else they are sampled. Only
            `policy: scores` explores: with another one an error unless left at its default.
        warmup: no choice up to this step; below 1 it is a share of the run's steps, else steps.
        seed: of DLS's own random generator.
        layers: a static choice: only these layers train, from the first step on. Nothing is scored
            and the other settings have no effect. `null` chooses by the policy.
        policy: which k layers are chosen. `scores`, the paper's: those with the highest scores with
            probability p_exploit, else a random sample. `random`: a random sample (LISA), as
            `scores` with p_exploit = 0. `cyclic`: the next k, in turn (BAdam). `weighted`: drawn
            without replacement with P(i) = score_i / Σ score (GRASS, AdaGradSelect). `upper`: the
            last k. `lower`: the first k. Only `scores` and `weighted` score the layers.
        score: `gradient` is the paper's, the norm of the gradients by the norms' scales (Eq. 5);
            `relative` multiplies each by its scale, ‖w ⊙ ∇w‖ (Gemma: 1 + w for w), so that the
            score does not depend on how a function is written.

    Raises:
        RosaError: a value is out of its range.
    """

    k_ratio: float = 0.5
    interval: int = 40
    p_exploit: float = 0.8
    warmup: float = 0.05
    seed: int = 0
    layers: list[int] | None = dataclasses.field(default=None, hash=False)
    policy: Policy = "scores"
    score: Literal["gradient", "relative"] = "gradient"

    def __post_init__(self) -> None:
        def check(name: str, *rule: Any) -> None:
            check_number(f"dls.{name}", getattr(self, name), *rule)

        check("k_ratio", lambda v: 0 < v <= 1, "a number above 0 and at most 1")
        check("interval", lambda v: v >= 1, "an integer of at least 1", int)
        check("p_exploit", lambda v: 0 <= v <= 1, "a number from 0 to 1")
        check("warmup", lambda v: 0 <= v < math.inf, "a number of at least 0")
        check("seed", lambda v: v >= 0, "an integer of at least 0", int)
        check_choice("dls.score", self.score, ("gradient", "relative"))
        check_choice("dls.policy", self.policy, POLICIES)
        if self.layers is not None:
            object.__setattr__(self, "layers", _layer_list(self.layers))
        self._check_policy()

    def _check_policy(self) -> None:
        if self.policy == "scores":
            return
        if self.layers is not None:
            raise RosaError(
                f"dls.layers is a choice of its own, and dls.policy={self.policy!r} another: leave "
                "out one of the two"
            )
        if self.p_exploit != type(self).p_exploit:
            raise RosaError(
                f"dls.p_exploit={self.p_exploit} has no effect with dls.policy={self.policy!r}, "
                "which does not choose between exploiting and exploring: leave it out"
            )
        if self.score != "gradient" and not self.needs_scores:
            raise RosaError(
                f"dls.score={self.score!r} has no effect with dls.policy={self.policy!r}, which "
                "scores nothing: leave it out"
            )

    @property
    def needs_scores(self) -> bool:
        """Whether the layers are scored before a choice."""
        return self.layers is None and self.policy in SCORED_POLICIES

    @classmethod
    def of(cls, value: DlsConfig | Mapping[str, Any] | None) -> DlsConfig:
        """`value` as a `DlsConfig`: itself, made from its keys (as in a JSON file), or defaults."""
        if value is None or isinstance(value, cls):
            return value or cls()
        if not isinstance(value, Mapping):
            raise RosaError(f"dls must be a DlsConfig or its keys, not {value!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in value:
            if key not in known:
                hint = did_you_mean(str(key), known)
                raise RosaError(f"dls has no key {key!r}{hint}; its keys are {', '.join(known)}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able keys and values."""
        return dataclasses.asdict(self)

    def warmup_steps(self, total_steps: int | None) -> int:
        """T_warmup in optimizer steps: the last step without a choice. A share needs the total."""
        if self.layers is not None:
            return 0
        if self.warmup == 0 or self.warmup >= 1:
            return math.floor(self.warmup)
        if total_steps is None:
            raise RosaError(
                f"dls.warmup={self.warmup} is a share of the run, so total_steps is needed: pass "
                "total_steps=..., or give warmup as a number of steps (0, or 1 and more)"
            )
        # Rounding first: 0.29 * 100 is 28.999999999999996, and the user means 29.
        return math.floor(round(self.warmup * total_steps, 6))

    def chooses_at(self, step: int, total_steps: int | None) -> bool:
        """Whether optimizer step `step` (from 1) chooses: Algorithm 1, line 7."""
        if self.layers is not None:
            return False
        return step > self.warmup_steps(total_steps) and step % self.interval == 0

    def choices_before(self, step: int, total_steps: int | None) -> int:
        """How many steps before `step` choose."""
        return (step - 1) // self.interval - self.warmup_steps(total_steps) // self.interval


def _layer_list(value: Any) -> list[int]:
    """The indices in ascending order."""
    indices = list(value) if isinstance(value, (list, tuple, range)) else []
    valid = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)
    if not indices or not valid or len(set(indices)) < len(indices):
        raise RosaError(
            f"dls.layers must be a list of distinct layer indices from 0, or null, not {value!r}"
        )
    return sorted(indices)
