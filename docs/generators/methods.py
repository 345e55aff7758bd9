"""The tables of docs/reference/methods.md, from the study's YAML files."""

from __future__ import annotations

import json
from typing import Any

from rosa.methods.peft_methods import UNSUPPORTED
from rosa.methods.registry import Method, MethodGroup, load_method, method_names

HEAD = "| name | title | PEFT class | arguments | DLS | remarks |"


def methods_table(groups: list[MethodGroup]) -> str:
    """A row per method of the study."""
    rows = [_row(load_method(name)) for name in method_names(groups)]
    return "\n".join([HEAD, "|---|---|---|---|---|---|", *rows])


def unsupported_table() -> str:
    """PEFT's methods that a recipe cannot train."""
    rows = [f"| `{name}` | {reason} |" for name, reason in UNSUPPORTED.items()]
    return "\n".join(["| raises an error | because |", "|---|---|", *rows])


def _row(method: Method) -> str:
    arguments = ", ".join(f"`{key}: {_yaml(value)}`" for key, value in method.kwargs.items())
    scheduled = ", ".join(
        f"`{key}`: {share:.1%} of the steps".replace(".0%", "%")
        for key, share in method.of_total_steps.items()
        if share < 1
    )
    cells = [
        f"`{method.name}`",
        method.title,
        f"`{method.peft_config}`",
        "; ".join(filter(None, [arguments, scheduled])) or "its defaults",
        "yes" if method.dls else "",
        method.note,
    ]
    return f"| {' | '.join(cells)} |"


def _yaml(value: Any) -> str:
    """A value as YAML's flow style has it, without quotes."""
    return json.dumps(value).replace('"', "")
