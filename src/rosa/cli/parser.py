"""The argument parser of every command: jsonargparse with errors written for people."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any

import jsonargparse

from rosa.errors import RosaError


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser that raises `RosaError` with one sentence instead of printing usage.

    An option that does not exist is answered with the nearest that does.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(exit_on_error=False, **kwargs)

    @property
    def option_names(self) -> list[str]:
        """Every long option, without the dashes: `lr`, `dls.interval`, ..."""
        strings = (s for action in self._actions for s in action.option_strings)
        return [s.removeprefix("--") for s in strings if s.startswith("--")]

    def parse_args(self, args: list[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        for word in args or []:
            name = word.removeprefix("--").split("=")[0]
            if word.startswith("--") and name not in self.option_names:
                hint = did_you_mean(name, self.option_names)
                raise RosaError(f"there is no option --{name}{hint}; --help lists them")
        try:
            return super().parse_args(args, *rest, **kwargs)
        except argparse.ArgumentError as error:
            raise RosaError(" ".join(str(error).split())) from None
