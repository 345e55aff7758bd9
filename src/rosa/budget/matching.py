"""Finds the rank (or block size) at which a method trains a given number of parameters.

    config = load_model_config("Qwen2.5-7B")
    match_budget(config, "lora", 19_927_040)           # {"r": 8, "lora_alpha": 4}
    nearest_match(config, "c3a", 19_927_040).count     # what those arguments give

A method has at most one size: its rank, or the block size of C3A and BOFT. Its parameters are
linear in the size, so two counts tell which one is nearest and a third what it gives. Arguments
that depend on the rank scale with it: LoRA's alpha, AdaLoRA's target rank.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rosa.budget.parameters import ParameterCount, base_parameters, count_parameters
from rosa.errors import RosaError, did_you_mean
from rosa.methods.registry import GROUPS, load_method, method_names

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Arguments = dict[str, Any]  # of a PEFT config

NOTE_THRESHOLD = 0.05  # a larger relative distance from the target gets a note
MAX_PROBES = 40  # sizes to count in search of those that fit the model
# Arguments that keep their ratio to the rank.
_SCALED_WITH_RANK: dict[str, tuple[str, ...]] = {
    "LoraConfig": ("lora_alpha",),
    "AdaLoraConfig": ("target_r", "lora_alpha"),
    "LoHaConfig": ("alpha",),
    "LoKrConfig": ("alpha",),
}


@dataclasses.dataclass(frozen=True)
class BudgetMatch:
    """The arguments of a method that come nearest to a number of trainable parameters."""

    target: int
    arguments: Arguments  # empty where the method has no size to choose
    count: ParameterCount  # what they give
    note: str = ""  # how far it is from the target, and why

    @property
    def difference(self) -> float | None:
        """(trainable - target) / target."""
        trainable = self.count.trainable
        return None if trainable is None else trainable / self.target - 1

    def to_json(self, model: str) -> dict[str, Any]:
        """The row that `rosa params --match_budget ... --json` prints."""
        return {
            "model": model,
            "method": self.count.method,
            "target": self.target,
            "setting": self.arguments,
            "trainable": self.count.trainable,
            "percent": self.count.percent,
            "difference": self.difference,
            "note": self.note,
        }


@dataclasses.dataclass(frozen=True)
class _Size:
    """Arguments for every size of a method, and a number in which its parameters are linear."""

    choices: list[Arguments]
    value: Callable[[Arguments], float]


def match_budget(
    config: PretrainedConfig, method: str, target: int, given: Arguments | None = None
) -> Arguments:
    """The arguments that bring `method` nearest to `target` trainable parameters.

    `given` are arguments of the method that stay as they are. AdaLoRA counts at its initial rank.

    Raises:
        RosaError: the method has no size to choose, or does not apply to this model.
    """
    match = nearest_match(config, method, target, given)
    if not match.arguments:
        raise RosaError(f"the budget of '{method}' cannot be matched: {match.note}")
    return match.arguments


def nearest_match(
    config: PretrainedConfig, method: str, target: int, given: Arguments | None = None
) -> BudgetMatch:
    """As `match_budget`, with the count it gives and a note where it is far from the target."""
    given = dict(given or {})
    size = _size_of(config, method, given)
    for arguments, expected in _by_distance(config, method, target, given, size) if size else ():
        count = count_parameters(config, method, {**given, **arguments})
        if count.trainable is not None:
            note = _distance_note(arguments, count.trainable, target, expected)
            return BudgetMatch(target, arguments, count, note)
    count = count_parameters(config, method, given)
    note = "none of its sizes fits this model" if size else "it has no size to choose"
    return BudgetMatch(target, {}, count, count.note if count.trainable is None else note)


def parse_budget(config: PretrainedConfig, budget: str) -> int:
    """The parameters that `--match_budget` asks for: `20000000`, `0.26%` of all, or a method's.

    Raises:
        RosaError: it is none of these, or out of range.
    """
    text = budget.strip().replace(",", "").replace("_", "") if budget[:1].isdigit() else budget
    if re.fullmatch(r"\d+", text) and int(text) > 0:
        return int(text)
    if re.fullmatch(r"\d*\.?\d+ ?%", text):
        share = float(text.rstrip("% ")) / 100
        if 0 < share < 1 and (found := round(share / (1 - share) * base_parameters(config))):
            return found
    elif not text[:1].isdigit():
        count = count_parameters(config, budget)
        if count.trainable is None:
            raise RosaError(f"--match_budget: {count.title} is {count.note}")
        return count.trainable
    hint = did_you_mean(budget, method_names(GROUPS))
    raise RosaError(
        f"--match_budget must be a number of parameters, a share such as 0.26% or a method{hint}, "
        f"not '{budget}'"
    )


def _size_of(config: PretrainedConfig, method: str, given: Arguments) -> _Size | None:
    """Ranks up to the model's width, above which they add nothing, or blocks that divide it."""
    chosen = load_method(method)
    width = int(config.get_text_config().hidden_size)
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    if chosen.peft_config == "C3AConfig":
        blocks = [{"block_size": d} for d in divisors]
        return _Size(blocks, lambda arguments: 1 / arguments["block_size"])
    if chosen.peft_config == "BOFTConfig":  # at one factor: more need PEFT's CUDA extension
        blocks = [{"boft_block_size": d} for d in divisors]
        return _Size(blocks, lambda arguments: arguments["boft_block_size"])
    fields = {f.name: f.default for f in dataclasses.fields(chosen.config_class)}
    values = {**fields, **chosen.kwargs, **given}
    key = "init_r" if "init_r" in values else "r"
    if not isinstance(values.get(key), int) or values[key] < 1:  # OFT's r may be 0, for "unused"
        return None
    scaled = _SCALED_WITH_RANK.get(chosen.peft_config, ())
    least = 2 if "target_r" in scaled else 1  # AdaLoRA's target must be lower still
    ranks = [
        {key: rank} | {name: max(1, round(rank / values[key] * values[name])) for name in scaled}
        for rank in range(least, width + 1)
    ]
    return _Size(ranks, lambda arguments: arguments[key])


def _by_distance(
    config: PretrainedConfig, method: str, target: int, given: Arguments, size: _Size
) -> list[tuple[Arguments, float]]:
    """The sizes with their expected counts, nearest first; none where too few can be counted."""
    points: list[tuple[float, int]] = []
    for probe in size.choices[:MAX_PROBES]:
        trainable = count_parameters(config, method, {**given, **probe}).trainable
        if trainable is not None:
            points.append((size.value(probe), trainable))
        if len(points) == 2:
            break
    if len(points) < 2 or points[0][1] == points[1][1]:
        return []
    (x, first), (y, second) = points
    slope = (second - first) / (y - x)
    expected = [first + slope * (size.value(arguments) - x) for arguments in size.choices]
    found = zip(size.choices, expected, strict=True)
    return sorted(found, key=lambda pair: abs(pair[1] - target))[:MAX_PROBES]


def _distance_note(arguments: Arguments, trainable: int, target: int, expected: float) -> str:
    """How far the nearest arguments are; empty where they are near."""
    difference = trainable / target - 1
    if abs(difference) <= NOTE_THRESHOLD:
        return ""
    (key, value), *_ = arguments.items()
    far = f"{abs(difference):.0%} {'above' if difference > 0 else 'below'} the budget"
    if abs(trainable - expected) > 1:
        return f"{key} {value} is {far}; another may be nearer, as the count is not linear in it"
    return f"{key} {value} comes nearest and is {far}"
