"""The argument parser of every command: jsonargparse with errors of one sentence."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection, Iterable
from typing import Any, Literal

import jsonargparse

from rosa.errors import RosaError, did_you_mean
from rosa.models.quantization import Quantization

LOADING = ("dtype", "device", "quantization", "trust_remote_code")


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that raises `RosaError`; for an unknown option with the nearest one."""

    def __init__(self, nested_keys: Iterable[str] = (), **kwargs: Any) -> None:
        """`nested_keys`: keys of optional groups (`dls.interval`), which argparse does not list."""
        kwargs.setdefault("exit_on_error", False)  # jsonargparse sets it on nested parsers
        super().__init__(**kwargs)
        self._nested_keys = list(nested_keys)

    @property
    def option_names(self) -> list[str]:
        """Every long option, without the dashes: `lr`, `dls.interval`, ..."""
        strings = (s for action in self._actions for s in action.option_strings)
        listed = [s.removeprefix("--") for s in strings if s.startswith("--")]
        return [name for name in listed if not name.endswith(".help")] + self._nested_keys

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """As jsonargparse, but `--flag` alone means `--flag true`."""
        added = super().add_class_arguments(*args, **kwargs)
        for action in self._actions:
            if getattr(action, "_typehint", None) is bool:
                action.nargs, action.const = "?", True
        return added

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        args = snake_case_flags(args or [])
        check_options(args, [*self.option_names, "help"])
        try:
            parsed = super().parse_args(args, *rest, **kwargs)
        except argparse.ArgumentError as error:
            raise RosaError(_sentence(str(error))) from None
        return _expand_user(parsed)


def _expand_user(value: Any) -> Any:
    """`value`, where every text in it that begins with `~/` is in the home folder."""
    if isinstance(value, str) and value.startswith("~/"):
        return os.path.expanduser(value)
    if isinstance(value, list):
        return [_expand_user(each) for each in value]
    if isinstance(value, (dict, jsonargparse.Namespace)):
        for key, each in list((value if isinstance(value, dict) else vars(value)).items()):
            value[key] = _expand_user(each)
    return value


def add_loading_options(parser: Parser, *, quantization: bool = True) -> None:
    """The options `LOADING`, which `rosa.models.loading.load` takes."""
    add = parser.add_argument
    add("--dtype", type=Literal["auto", "bf16", "float32"], default="auto")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    if quantization:
        what = "4-bit (nf4) or 8-bit (int8) base model, as the adapter was trained on it"
        add("--quantization", type=Quantization | None, help=what)
    add("--trust_remote_code", action="store_true", help="run Python code of a hub model")


def loading_options(args: Any) -> dict[str, Any]:
    """Those of `LOADING` that the command has, as keyword arguments."""
    return {key: getattr(args, key) for key in LOADING if key in args}


def snake_case_flags(words: Iterable[str]) -> list[str]:
    """`--max-steps` as `--max_steps` and `--max-steps=5` as `--max_steps=5`; values unchanged."""
    return [
        re.sub(r"^--[^=]*", lambda flag: "--" + flag[0][2:].replace("-", "_"), word)
        for word in words
    ]


def check_options(words: Iterable[str], known: Collection[str]) -> None:
    """Raises RosaError for the first `--name` that is not `known`, with the nearest one."""
    for word in words:
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name not in known:
            hint = did_you_mean(name, known)
            raise RosaError(f"there is no option --{name}{hint}; --help lists them")


def check_keys(keys: Iterable[Any], known: Collection[str], where: str, prefix: str = "") -> None:
    """Raises RosaError for the first key of the file `where` that is not `known`."""
    for key in keys:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise RosaError(f"{where}: there is no key '{prefix}{key}'{hint}")


def _sentence(message: str) -> str:
    """A type error of jsonargparse as `learning_rate: expected a float, got abc`."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    expected = re.findall(r"Expected a (?:<class '([\w.]+)'>|typing\.(Literal\[.*?\]))", message)
    kinds = [a.split(".")[-1] or b for a, b in expected if a != "NoneType"]
    value = re.search(r"(?:val='|Got value: |Given value: )([^'\n]*)", message)
    if not (keys and kinds and value):
        return " ".join(message.split())
    choices = kinds[0].removeprefix("Literal[").removesuffix("]")
    article = "an" if kinds[0][0] in "aeiou" else "a"
    what = f"{article} {kinds[0]}" if choices == kinds[0] else f"one of {choices}"
    return f"{'.'.join(dict.fromkeys(keys))}: expected {what}, got {value.group(1)}"
