"""The study's methods as PEFT configurations: one YAML file each in `methods/`.

    method_config("lora", {"r": 8})            # a peft.LoraConfig
    method_config("adalora", total_steps=900)  # AdaLoRA schedules its ranks

The values of baselines are those that reproduce the "# Param (%)" column of the paper's Table 1;
where they cannot, the file's note says so. A file with `base: NAME` is that method with some keys
changed. PEFT's other methods are available by PEFT's names (`rosa.methods.peft_methods`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

import yaml

from rosa.assets.paper_numbers import paper_percent
from rosa.errors import RosaError, did_you_mean, one_line
from rosa.methods import peft_methods

if TYPE_CHECKING:
    from peft import PeftConfig

MethodGroup = Literal["baseline", "ours", "variant", "other"]  # other: PEFT's, not the study's
PAPER_GROUPS: tuple[MethodGroup, ...] = ("baseline", "ours")  # the nine rows of Table 1
GROUPS: tuple[MethodGroup, ...] = (*PAPER_GROUPS, "variant")
# As in the paper's Tables 1 and 4; what is not there follows by name.
_ORDER = (
    *("lora", "dora", "adalora", "boft", "vera", "c3a", "bone", "ln_tuning", "rosa"),
    *("roae_only", "rosa_low_0.5", "rosa_lr128", "rosa_lr64"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of the study."""

    name: str  # what users type: the file's stem
    title: str  # what tables print
    group: MethodGroup
    peft_config: str  # name of a class in `peft` or `rosa`
    kwargs: dict[str, Any]  # its arguments
    dls: bool = False  # whether dynamic layer selection is part of the method
    norm_learning_rate: float | None = None  # where the norms have a rate of their own
    of_total_steps: dict[str, float] = dataclasses.field(default_factory=dict)
    # Arguments whose default is a share of the run's optimizer steps.
    note: str = ""  # printed with its numbers

    @property
    def paper_percent(self) -> dict[str, float]:
        """Trainable parameters in percent as the paper's Table 1 prints them, by model."""
        return paper_percent(self.name)

    @property
    def config_class(self) -> type[PeftConfig]:
        """The class that `peft_config` names."""
        import rosa

        if self.peft_config in rosa.__all__:
            return getattr(rosa, self.peft_config)
        classes = {cls.__name__: cls for cls in peft_methods.config_classes().values()}
        return classes[self.peft_config]


def method_names(groups: Iterable[MethodGroup] = PAPER_GROUPS) -> list[str]:
    """Names of the methods in `groups`: group by group, in the paper's order."""
    wanted = list(groups)
    chosen = [method for method in _all_methods().values() if method.group in wanted]

    def place(method: Method) -> tuple[int, int, str]:
        order = _ORDER.index(method.name) if method.name in _ORDER else len(_ORDER)
        return wanted.index(method.group), order, method.name

    return [method.name for method in sorted(chosen, key=place)]


def load_method(name: str) -> Method:
    """The method called `name`; case, spaces and dashes don't matter ("LN Tuning", "ln-tuning").

    A title ("RoSA-RoAEonly") and PEFT's name for another method ("ia3") work too. Raises
    `RosaError` for an unknown name, with the nearest one, and for a method that a recipe cannot
    train.
    """
    known = _all_methods()
    titles = {_key(method.title): method for method in known.values()}
    return known.get(_key(name)) or titles.get(_key(name)) or _other_method(name)


def _other_method(name: str) -> Method:
    key = _key(name)
    if key in peft_methods.UNSUPPORTED:
        raise RosaError(f"'{key}' cannot be trained by a recipe: {peft_methods.UNSUPPORTED[key]}")
    classes = peft_methods.config_classes()
    if key not in classes:
        names = method_names(GROUPS)
        raise RosaError(
            f"there is no method '{name}'{did_you_mean(key, [*names, *classes])}; the methods "
            f"are {', '.join(names)}, and PEFT's others by their PEFT names"
        )
    cls = classes[key]
    title = cls.__name__.removesuffix("Config")
    return Method(key, title, "other", cls.__name__, peft_methods.default_kwargs(cls))


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


@functools.cache
def _all_methods() -> dict[str, Method]:
    """Every method of the package by name."""
    files = [f for f in resources.files("rosa.methods").iterdir() if f.name.endswith(".yaml")]
    read = [yaml.safe_load(file.read_text("utf-8")) for file in files]
    entries = {entry["name"]: entry for entry in read}
    return {name: Method(**_with_base(entry, entries)) for name, entry in entries.items()}


def _with_base(entry: dict[str, Any], entries: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A method's keys on top of those of its `base`, whose note does not apply to it."""
    if "base" not in entry:
        return entry
    base = _with_base(entries[entry["base"]], entries)
    own = {key: value for key, value in entry.items() if key != "base"}
    return {**base, "note": "", **own, "kwargs": {**base["kwargs"], **own.get("kwargs", {})}}


def method_config(
    name: str, overrides: dict[str, Any] | None = None, *, total_steps: int | None = None
) -> PeftConfig:
    """A new PEFT configuration for causal language models.

    `overrides` replace arguments of the method's YAML file. `total_steps`, the optimizer steps of
    the run, is used by methods with a schedule of their own (AdaLoRA).

    Raises `RosaError` for an unknown method, an unknown argument or a value that PEFT rejects.
    """
    method = load_method(name)
    overrides = dict(overrides or {})
    fields = {f.name for f in dataclasses.fields(method.config_class) if f.init}
    for key in overrides:
        if key not in fields:
            raise RosaError(
                f"the method '{method.name}' has no argument '{key}'{did_you_mean(key, fields)}; "
                f"its arguments are those of {method.peft_config}"
            )
    if total_steps is not None:
        for key, share in method.of_total_steps.items():
            overrides.setdefault(key, round(share * total_steps))
    try:
        config = method.config_class(task_type="CAUSAL_LM", **{**method.kwargs, **overrides})
    except (TypeError, ValueError) as error:
        raise RosaError(
            f"the method '{method.name}' cannot be configured: {one_line(error)}"
        ) from error
    first, last = (getattr(config, key, None) for key in ("init_r", "target_r"))
    if first is not None and last is not None and first <= last:
        raise RosaError(
            f"{method.name} prunes ranks from init_r to target_r, so init_r {first} must be above "
            f"target_r {last}; set both"
        )
    return config
