"""`DlsConfig`, the settings of DLS. No PyTorch here: adapter configurations embed this class."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rosa.errors import RosaError, check_number, did_you_mean


@dataclasses.dataclass(frozen=True)
class DlsConfig:
    """What share of the layers is trained, how often they are chosen, and how.

    Args:
        k_ratio: share of the layers that train after the first choice, 0 < k_ratio <= 1.
        interval: u, layers are chosen at every u-th optimizer step.
        p_exploit: probability of the layers with the highest scores; else they are sampled.
        warmup: no choice up to this step; below 1 it is a share of the run's steps, else steps.
        seed: of DLS's own random generator.
        layers: a static choice: only these layers train, from the first step on. Nothing is scored
            and the other settings have no effect. `null` chooses by the scores.

    Raises:
        RosaError: a value is out of its range.
    """

    k_ratio: float = 0.5
    interval: int = 40
    p_exploit: float = 0.8
    warmup: float = 0.05
    seed: int = 0
    layers: list[int] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        def check(name: str, *rule: Any) -> None:
            check_number(f"dls.{name}", getattr(self, name), *rule)

        check("k_ratio", lambda v: 0 < v <= 1, "a number above 0 and at most 1")
        check("interval", lambda v: v >= 1, "an integer of at least 1", int)
        check("p_exploit", lambda v: 0 <= v <= 1, "a number from 0 to 1")
        check("warmup", lambda v: 0 <= v < math.inf, "a number of at least 0")
        check("seed", lambda v: v >= 0, "an integer of at least 0", int)
        if self.layers is not None:
            object.__setattr__(self, "layers", _layer_list(self.layers))

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
        """Whether optimizer step `step` (from 1) scores and chooses: Algorithm 1, line 7."""
        if self.layers is not None:
            return False
        return step > self.warmup_steps(total_steps) and step % self.interval == 0


def _layer_list(value: Any) -> list[int]:
    """The indices in ascending order."""
    indices = list(value) if isinstance(value, (list, tuple, range)) else []
    valid = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in indices)
    if not indices or not valid or len(set(indices)) < len(indices):
        raise RosaError(
            f"dls.layers must be a list of distinct layer indices from 0, or null, not {value!r}"
        )
    return sorted(indices)
