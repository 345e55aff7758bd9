"""The methods that the paper compares, as PEFT configurations: one YAML file each in `methods/`.

    method_config("lora", {"r": 8})            # a peft.LoraConfig
    method_config("adalora", total_steps=900)  # AdaLoRA must know how long it trains

The values are those that reproduce the "# Param (%)" column of the paper's Table 1; where they
cannot, the file's note says so.
"""

from __future__ import annotations

import dataclasses
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml

from rosa.errors import RosaError, did_you_mean

if TYPE_CHECKING:
    from peft import PeftConfig


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of the study."""

    name: str  # what users type: the file's stem
    title: str  # what the paper's tables print
    peft_config: str  # name of a class in `peft` or `rosa`
    kwargs: dict[str, Any]  # its arguments
    paper_percent: dict[str, float]  # Table 1's "# Param (%)" by built-in model name
    note: str = ""  # what a reader of its numbers must know

    @property
    def config_class(self) -> type[PeftConfig]:
        """The class that `peft_config` names."""
        import peft

        import rosa

        return getattr(rosa if self.peft_config in rosa.__all__ else peft, self.peft_config)


def method_names() -> list[str]:
    """Names of all methods, in alphabetical order, `rosa` last."""
    names = [file.name for file in (resources.files("rosa.study") / "methods").iterdir()]
    methods = [name.removesuffix(".yaml") for name in names if name.endswith(".yaml")]
    return sorted(methods, key=lambda name: (name == "rosa", name))


def load_method(name: str) -> Method:
    """The method called `name`; case, spaces and dashes don't matter ("LN Tuning", "ln-tuning").

    Raises `RosaError` for an unknown name, with the nearest one.
    """
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    known = method_names()
    if key not in known:
        raise RosaError(
            f"there is no method '{name}'{did_you_mean(key, known)}; "
            f"the methods are {', '.join(known)}"
        )
    file = resources.files("rosa.study") / "methods" / f"{key}.yaml"
    return Method(**yaml.safe_load(file.read_text("utf-8")))


def method_config(
    name: str, overrides: dict[str, Any] | None = None, *, total_steps: int | None = None
) -> PeftConfig:
    """A new PEFT configuration for causal language models.

    `overrides` replace arguments of the method's YAML file. `total_steps`, the optimizer steps of
    the run, reaches the methods that schedule themselves (AdaLoRA); the others ignore it.

    Raises `RosaError` for an unknown method, an unknown argument or one that PEFT refuses.
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
    if "total_step" in fields and total_steps is not None:
        overrides.setdefault("total_step", total_steps)
    try:
        return method.config_class(task_type="CAUSAL_LM", **{**method.kwargs, **overrides})
    except (TypeError, ValueError) as error:
        reason = one_line(error)
        raise RosaError(f"the method '{method.name}' can't be set up: {reason}") from error


def one_line(error: Exception) -> str:
    """The message of a library's exception without its line breaks."""
    return " ".join(str(error).split())
