"""Which setting of a method trains about as many parameters as asked for.

    config = model_shape("Qwen2.5-7B")
    match_budget(config, "lora", 19_927_040)       # {"r": 8, "lora_alpha": 4}
    nearest(config, "c3a", 19_927_040).budget      # what that setting gives

A method has at most one size that is turned: its rank, or C3A's and BOFT's blocks. The number of
parameters grows evenly with it, so two counts tell which setting is wanted and a third what it
gives. What goes with the size is turned along: LoRA's alpha keeps its ratio to the rank, AdaLoRA's
target rank its ratio to the initial one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rosa.budget.parameters import Budget, count
from rosa.errors import RosaError, did_you_mean
from rosa.methods.registry import GROUPS, load_method, method_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Setting = dict[str, Any]
FAR = 0.05  # a greater relative distance from the wanted number is told
# What is turned along with the rank, to keep its ratio to it.
_ALONG: dict[str, tuple[str, ...]] = {
    "LoraConfig": ("lora_alpha",),
    "AdaLoraConfig": ("target_r", "lora_alpha"),
    "LoHaConfig": ("alpha",),
    "LoKrConfig": ("alpha",),
}


@dataclasses.dataclass(frozen=True)
class Match:
    """The setting of a method that comes nearest to a number of trainable parameters."""

    target: int
    overrides: Setting  # of the method's arguments; empty where it has no size
    budget: Budget  # what that gives; no counts where the method does not apply at all
    note: str = ""  # how far off, and why

    @property
    def difference(self) -> float | None:
        """(trainable - target) / target."""
        trainable = self.budget.trainable
        return None if trainable is None else trainable / self.target - 1


@dataclasses.dataclass(frozen=True)
class Knob:
    """The size of a method.

    Attributes:
        size: a number per setting that the parameters grow evenly with.
        probes: two settings to count, of different size.
        candidates: settings to choose from when this size is wanted, of any distance.
    """

    size: Callable[[Setting], float]
    probes: list[Setting]
    candidates: Callable[[float], list[Setting]]


def match_budget(
    config: PretrainedConfig, method: str, target: int, given: Setting | None = None
) -> Setting:
    """The arguments that bring `method` nearest to `target` trainable parameters.

    Raises:
        RosaError: the method has no size to choose, or does not apply to this model.
    """
    match = nearest(config, method, target, given)
    if not match.overrides:
        raise RosaError(f"the budget of '{method}' can't be matched: {match.note}")
    return match.overrides


def nearest(
    config: PretrainedConfig, method: str, target: int, given: Setting | None = None
) -> Match:
    """`match_budget` with what the setting gives, and why it is no nearer.

    `given` are arguments of the method that stay as they are. For AdaLoRA the initial rank counts.
    """
    given = dict(given or {})
    knob = knob_of(config, method, given)
    for setting, expected in _by_distance(config, method, target, given, knob):
        budget = count(config, method, {**given, **setting})
        if budget.trainable is not None:
            return _told(Match(target, setting, budget), expected)
    as_it_is = count(config, method, given)
    if as_it_is.trainable is None:
        return Match(target, {}, as_it_is, as_it_is.note)
    note = "it has no size to choose" if knob is None else "none of its sizes fits this model"
    return Match(target, {}, as_it_is, note)


def knob_of(config: PretrainedConfig, method: str, given: Setting | None = None) -> Knob | None:
    """What makes a method larger and smaller, or None."""
    chosen = load_method(method)
    width = int(config.get_text_config().hidden_size)
    if chosen.peft_config == "C3AConfig":
        return _blocks(width, "block_size", lambda s: 1 / s["block_size"])
    if chosen.peft_config == "BOFTConfig":  # at one factor: more need PEFT's CUDA extension
        return _blocks(width, "boft_block_size", lambda s: s["boft_block_size"])
    fields = {f.name: f.default for f in dataclasses.fields(chosen.config_class)}
    values = {**fields, **chosen.kwargs, **(given or {})}
    key = "init_r" if "init_r" in values else "r"
    if not isinstance(values.get(key), int) or values[key] < 1:  # OFT's r may be 0, for "unused"
        return None
    return _rank(key, values, _ALONG.get(chosen.peft_config, ()), width)


def wanted_parameters(config: PretrainedConfig, budget: str) -> int:
    """The number that `--match-budget` means: `20000000`, `0.26%` of all, or a method's.

    Raises:
        RosaError: it is none of these, or out of range.
    """
    text = budget.strip().replace(",", "").replace("_", "") if budget[:1].isdigit() else budget
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return int(text)
    if re.fullmatch(r"\d*\.?\d+ ?%", text):
        share = float(text.rstrip("% ")) / 100
        found = round(share / (1 - share) * _base_parameters(config)) if share < 1 else 0
        if found:
            return found
    elif not text[:1].isdigit():
        own = count(config, budget)
        if own.trainable is None:
            raise RosaError(f"--match-budget: {own.title} is {own.note}")
        return own.trainable
    hint = did_you_mean(budget, method_names(GROUPS))
    raise RosaError(
        f"--match-budget must be a number of parameters, a share like 0.26% or a method{hint}, "
        f"not '{budget}'"
    )


def _by_distance(
    config: PretrainedConfig, method: str, target: int, given: Setting, knob: Knob | None
) -> list[tuple[Setting, float]]:
    """The candidates with what they should give, nearest first."""
    if knob is None:
        return []
    points = []
    for probe in knob.probes:
        trainable = count(config, method, {**given, **probe}).trainable
        if trainable is not None:
            points.append((knob.size(probe), trainable))
        if len(points) == 2:
            break
    if len(points) < 2 or points[0][1] == points[1][1]:
        return []
    (x, first), (y, second) = points
    slope = (second - first) / (y - x)
    found = [
        (setting, first + slope * (knob.size(setting) - x))
        for setting in knob.candidates(x + (target - first) / slope)
    ]
    return sorted(found, key=lambda pair: abs(pair[1] - target))


def _rank(key: str, values: Setting, along: tuple[str, ...], width: int) -> Knob:
    """Ranks up to the width of the model, above which they add nothing."""
    least = 2 if "target_r" in along else 1  # AdaLoRA's must have room to fall

    def setting(rank: int) -> Setting:
        share = rank / values[key]
        return {key: rank} | {name: max(1, round(share * values[name])) for name in along}

    def candidates(size: float) -> list[Setting]:
        below = min(max(least, math.floor(size)), width)
        return [setting(below), setting(min(below + 1, width))]

    return Knob(lambda s: s[key], [setting(least), setting(2 * least)], candidates)


def _blocks(width: int, key: str, size: Callable[[Setting], float]) -> Knob:
    """Blocks of every size that divides the model's width; PEFT tells which of them fit."""
    settings = [{key: d} for d in range(1, width + 1) if width % d == 0]
    return Knob(size, settings, lambda _: settings)


def _told(match: Match, expected: float) -> Match:
    """The match with a sentence where it is far from what was wanted."""
    difference, trainable = match.difference, match.budget.trainable
    assert difference is not None
    assert trainable is not None
    if abs(difference) <= FAR:
        return match
    side = "above" if difference > 0 else "below"
    (key, value), *_ = match.overrides.items()
    note = f"{key} {value} comes nearest and is {abs(difference):.0%} {side} the budget"
    if abs(trainable - expected) > 1:
        note = (
            f"{key} {value} is {abs(difference):.0%} {side} the budget; another {key} may be "
            f"nearer, but the parameters do not grow evenly with it"
        )
    return dataclasses.replace(match, note=note)


def _base_parameters(config: PretrainedConfig) -> int:
    budget = count(config, "lora")
    assert budget.total is not None
    assert budget.trainable is not None
    return budget.total - budget.trainable
