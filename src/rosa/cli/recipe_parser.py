"""Reads `RECIPE.yaml --key value ...` into a `Recipe`, with errors that name the nearest key."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rosa.cli.parser import Parser, check_keys, check_options, snake_case_flags
from rosa.data.sources import FORMS
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError, one_line
from rosa.methods.registry import load_method
from rosa.train.adapter_from import is_local_adapter, method_of
from rosa.train.recipe import DEFAULT_METHOD, Recipe

_NESTED_KEYS = [f"dls.{field.name}" for field in fields(DlsConfig)]
_NESTED_KEYS += [f"columns.{name}" for name in dict.fromkeys(sum(FORMS, ()))]


def load_recipe(path: str, *overrides: str) -> Recipe:
    """The recipe in `path` with `--key value` overrides: the Python way to `rosa train`."""
    return RecipeParser("rosa train", {}).parse_args([path, *overrides])[0]


def resolve_recipe(given: dict[str, Any], where: str) -> Recipe:
    """The recipe of a mapping of keys, checked as a file's would be; errors begin with `where`."""
    return RecipeParser("rosa train", {}).resolve(given, where, [])[0]


class RecipeParser:
    """Parses `RECIPE.yaml [--key value ...]`; the keys under `adapter` depend on the method."""

    def __init__(self, prog: str, flags: dict[str, str]) -> None:
        """`flags`: extra switches of the command (name -> help), kept apart from the recipe."""
        self._prog = prog
        self._flags = flags

    def parse_args(self, argv: list[str]) -> tuple[Recipe, dict[str, bool]]:
        """The resolved recipe and the command's switches.

        Raises:
            RosaError: no recipe file, bad YAML, an unknown key (the nearest is named), a value of
                the wrong type, or a missing key.
        """
        path, options = self._split_path(snake_case_flags(argv))
        if path is None and not {"-h", "--help"} & set(options):
            raise RosaError(f"give a recipe: {self._prog} RECIPE.yaml [--key value]")
        return self.resolve(read_yaml_file(path, "recipe") if path else {}, str(path), options)

    def resolve(
        self, given: dict[str, Any], where: str, options: list[str]
    ) -> tuple[Recipe, dict[str, bool]]:
        """The recipe of the keys `given` in `where` with `options` on top, and the switches."""
        for key in ("adapter", "dls"):
            _reject_scalar(given, key, where)
        _reject_null(given, Recipe, where)
        _reject_null(given.get("dls") or {}, DlsConfig, f"{where}: dls")
        self._check_keys(given, where, options)
        given, method, continued = _from_adapter(given, options)
        flags = tuple(self._flags.items())
        if method is None and {"-h", "--help"} & set(options):
            _parser(self._prog, flags, None).parse_args(["--help"])
        name = load_method(str(method or DEFAULT_METHOD)).name
        if "peft" not in sys.modules:  # its import takes seconds, and only `adapter` needs it
            others = {key: value for key, value in given.items() if key != "adapter"}
            words = _without_adapter(options)
            _parse(_parser(self._prog, flags, name, adapter=False), others, where, words)
        parser = _parser(self._prog, flags, name)
        check_keys(_flatten(given), parser.option_names, where)
        namespace = _parse(parser, given, where, options)
        switches = {name: bool(namespace.pop(name)) for name in self._flags}
        words = [word.removeprefix("--adapter.") for word in options if "--adapter." in word]
        explicit = {word.split("=")[0] for word in words} | set(given.get("adapter", {}))
        return _recipe(namespace, explicit, continued), switches

    def _check_keys(self, given: dict[str, Any], where: str, options: list[str]) -> None:
        """Raises RosaError for an unknown key, before PEFT and PyTorch are imported."""
        known = [field.name for field in fields(Recipe)] + _NESTED_KEYS
        check_keys((k for k in _flatten(given) if not k.startswith("adapter.")), known, where)
        known += [*self._flags, "help", "config", "print_config", "data+", "report_to+"]
        check_options((word for word in options if not word.startswith("--adapter.")), known)

    def _split_path(self, argv: list[str]) -> tuple[str | None, list[str]]:
        """The recipe's path, first or else the first word that ends like one, and the rest."""
        if argv and not argv[0].startswith("-"):
            return argv[0], argv[1:]
        flags = [f"--{name}" for name in self._flags]
        for i, word in enumerate(argv):
            is_value = i > 0 and argv[i - 1].startswith("--") and argv[i - 1] not in flags
            if word.endswith((".yaml", ".yml")) and not is_value:
                return word, [*argv[:i], *argv[i + 1 :]]
        return None, argv


def _parse(parser: Parser, given: dict[str, Any], where: str, options: list[str]) -> Any:
    try:
        return parser.parse_args(["--config", yaml.safe_dump(given), *options])
    except RosaError as error:
        raise RosaError(f"{error}" if options else f"{where}: {error}") from None


def _without_adapter(options: list[str]) -> list[str]:
    """`options` without those of the adapter and their values."""
    kept, skip = [], False
    for word in options:
        if word.startswith("--"):
            skip = word.startswith("--adapter.")
        if not skip:
            kept.append(word)
    return kept


@cache
def _parser(
    prog: str, flags: tuple[tuple[str, str], ...], method_name: str | None, adapter: bool = True
) -> Parser:
    """The parser of a method's recipes; cached, since a grid's plan needs it for every run.

    Without a method, the one of `--help`; it and one without `adapter` need no PEFT.
    """
    parser = Parser(
        nested_keys=_NESTED_KEYS,
        prog=prog,
        usage=f"{prog} RECIPE.yaml [--key value ...]",
        description="Fine-tune a model from a recipe. The keys under `adapter` are those of the "
        "method's PEFT config: --help --method NAME lists them.",
    )
    parser.add_argument("--config", action="config", help="the recipe file (the first word)")
    for name, text in flags:
        parser.add_argument(f"--{name}", action="store_true", help=text)
    parser.add_class_arguments(Recipe, skip={"adapter"})
    if method_name is None:
        return parser
    method = load_method(method_name)
    parser.set_defaults({"dls": DlsConfig() if method.dls else None})
    parser.set_defaults({"norm_learning_rate": method.norm_learning_rate})
    if not adapter:
        return parser
    from peft import PeftConfig

    # PEFT's own fields (which base model, which task), and `dls`, a recipe key itself.
    skip = {field.name for field in fields(PeftConfig)} | {"dls"}
    skip &= {field.name for field in fields(method.config_class) if field.init}
    parser.add_class_arguments(method.config_class, "adapter", skip=skip, fail_untyped=False)
    parser.set_defaults({f"adapter.{key}": value for key, value in method.kwargs.items()})
    return parser


def _from_adapter(
    given: dict[str, Any], options: list[str]
) -> tuple[dict[str, Any], str | None, bool]:
    """`given` with the base model and method of the adapter that the run continues.

    Also the recipe's method, and whether there is such an adapter.
    """
    names = ("adapter_from", "model", "method")
    source, model, method = (_option(options, name) or given.get(name) for name in names)
    if source is None and model and is_local_adapter(os.path.expanduser(str(model))):
        source = model
    if source is None:
        return given, method, False
    if method is None:
        method = method_of(os.path.expanduser(str(source)))
    found = {"adapter_from": source, "model": model or source, "method": method}
    return {**given, **found}, method, True


def _recipe(namespace: Any, explicit: set[str], continued: bool) -> Recipe:
    """The parsed keys as a recipe; `explicit` are the adapter's keys that were given.

    A run that continues an adapter has no others: they are the adapter's own.
    """
    namespace.pop("config", None)
    values = namespace.as_dict()
    if values["dls"] is not None:
        values["dls"] = DlsConfig(**values["dls"])
    # A share of the run's steps is not known yet, so PEFT's default must not take its place.
    scheduled = load_method(values["method"]).of_total_steps
    values["adapter"] = {
        key: value.value if isinstance(value, Enum) else value
        for key, value in values["adapter"].items()
        if key in explicit
        or not (continued or value is None or isinstance(value, dict) or key in scheduled)
    }
    return Recipe(**values)


def read_yaml_file(path: str, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file, a recipe or a grid as `kind` says in errors."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)
    except RosaError as error:
        raise RosaError(f"the {kind} '{path}': {error}") from None
    except FileNotFoundError:
        raise RosaError(f"there is no {kind} '{path}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RosaError(f"the {kind} '{path}' cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise RosaError(f"the {kind} '{path}' is not YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise RosaError(f"the {kind} '{path}' must hold `key: value` lines")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of duplicate keys, with an error for them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines and key.value != "<<":
                raise RosaError(
                    f"the key '{key.value}' is in line {lines[key.value]} and again in line "
                    f"{line}; remove one"
                )
            lines[str(key.value)] = line
        return super().construct_mapping(node, deep)


def _flatten(mapping: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _reject_scalar(given: dict[str, Any], key: str, where: str) -> None:
    """`dls: false` or `adapter: 5`; an empty `adapter:` means its defaults."""
    if key == "adapter" and given.get(key, {}) is None:
        del given[key]
    value = given.get(key)
    if value is not None and not isinstance(value, dict):
        cure = " or null to turn it off" if key == "dls" else ""
        raise RosaError(f"{where}: `{key}` must hold keys of its own{cure}, not {value!r}")


def _reject_null(given: dict[str, Any], owner: type, where: str) -> None:
    """Raises RosaError for `batch_size:` with nothing after it."""
    for field in fields(owner):
        if field.name in given and given[field.name] is None and "None" not in str(field.type):
            required = field.default is MISSING and field.default_factory is MISSING
            cure = "" if required else ", or remove the line to use the default"
            raise RosaError(f"{where}: `{field.name}` has no value; give it one{cure}")


def _option(argv: list[str], name: str) -> str | None:
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return None
