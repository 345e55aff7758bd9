"""One Python file out of a module of rosa and what it uses of others: their own source, once."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

from rosa.errors import RosaError

_PACKAGE = __name__.partition(".")[0]


@dataclass(frozen=True)
class _Import:
    module: str
    name: str  # "" for a module as a whole
    alias: str

    def __str__(self) -> str:
        if not self.name:
            return f"import {self.module}" + (f" as {self.alias}" if self.alias else "")
        renamed = "" if self.alias == self.name else f" as {self.alias}"
        return f"from {self.module} import {self.name}{renamed}"


@dataclass
class _Source:
    """A module's top level: what each name is defined by, or imported as."""

    lines: list[str]
    statements: list[ast.stmt]  # that define or do something, in order
    defined: dict[str, ast.stmt] = field(default_factory=dict)
    imported: dict[str, _Import] = field(default_factory=dict)

    def text(self, statement: ast.stmt) -> str:
        """A statement as it is written, with its decorators and the comment above it."""
        decorators = getattr(statement, "decorator_list", [])
        first = min(node.lineno for node in (statement, *decorators)) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : statement.end_lineno])


def bundle(module: ModuleType) -> tuple[list[str], str]:
    """The import statements, and the source of `module` after that of all it uses of this package.

    Raises RosaError where two different things have one name.
    """
    bundled = _Bundle()
    for statement in _read(module.__name__).statements:
        bundled.add(module.__name__, statement)
    return sorted({str(each) for each in bundled.imports}), "\n\n\n".join(bundled.texts)


class _Bundle:
    def __init__(self) -> None:
        self.imports: list[_Import] = []
        self.texts: list[str] = []
        self._by_name: dict[str, str] = {}
        self._done: set[tuple[str, int]] = set()

    def add(self, module: str, statement: ast.stmt) -> None:
        """A statement of a module, after what it needs."""
        if (module, statement.lineno) in self._done:
            return
        self._done.add((module, statement.lineno))
        source = _read(module)
        for name in sorted(_names(statement)):
            self._need(module, name)
        definition, known = ast.dump(statement), False
        for name in _defines(statement):
            known = name in self._by_name
            if self._by_name.setdefault(name, definition) != definition:
                raise RosaError(f"{name} of {module} is something else in another module")
        if not known:
            self.texts.append(source.text(statement))

    def _need(self, module: str, name: str) -> None:
        source = _read(module)
        if name in source.defined:
            self.add(module, source.defined[name])
        elif name in source.imported:
            found = source.imported[name]
            if found.module.partition(".")[0] != _PACKAGE:
                self.imports.append(found)
            elif found.alias != found.name:
                raise RosaError(f"{module} imports {found.name} by another name")
            else:
                self._need(found.module, found.name)


@cache
def _read(module: str) -> _Source:
    text = inspect.getsource(importlib.import_module(module))
    source = _Source(text.splitlines(), [])
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in _names(statement):
            nested = statement.body
        else:
            nested = [statement]
        for each in nested:
            _sort_in(source, each)
    return source


def _sort_in(source: _Source, statement: ast.stmt) -> None:
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            found = _Import(statement.module or "", alias.name, alias.asname or alias.name)
            source.imported[found.alias] = found
    elif isinstance(statement, ast.Import):
        for alias in statement.names:
            name = alias.asname or alias.name.partition(".")[0]
            source.imported[name] = _Import(alias.name, "", alias.asname or "")
    elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
        source.statements.append(statement)
        source.defined |= dict.fromkeys(_defines(statement), statement)


def _defines(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _names(statement: ast.stmt) -> set[str]:
    """The names that a statement reads, in annotations too."""
    names = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return names - set(vars(builtins))
