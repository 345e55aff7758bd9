"""Parameter budgets as tables: of one model, of the paper's Table 1, and matched ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rosa.budget.matching import Match
from rosa.budget.parameters import Budget, count, model_shape
from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.methods.registry import Method, load_method, method_names

DIGITS = 3  # of a percentage, as the paper prints it
OFF = "*"  # behind a percentage that is not the paper's


@dataclasses.dataclass(frozen=True)
class Counted:
    """A method's budget in a model beside the percentage that the paper prints."""

    model: str
    budget: Budget
    paper_percent: float | None

    @property
    def differs(self) -> bool:
        """Whether the paper prints another percentage."""
        percent = self.budget.percent
        if percent is None or self.paper_percent is None:
            return False
        return round(percent, DIGITS) != self.paper_percent

    def to_json(self) -> dict[str, Any]:
        """The counts as `rosa params --json` prints them."""
        return {
            "model": self.model,
            "method": self.budget.method,
            "trainable": self.budget.trainable,
            "total": self.budget.total,
            "percent": self.budget.percent,
            "paper_percent": self.paper_percent,
            "note": self.budget.note,
        }


def paper_models() -> list[str]:
    """The models of Table 1, in its order."""
    return list(load_method("rosa").paper_percent)


def count_table_1() -> list[Counted]:
    """The 27 budgets of the paper's Table 1, counted: model by model, method by method."""
    counted = []
    for model in paper_models():
        shape = model_shape(model)
        for method in map(load_method, method_names()):
            budget = count(shape, method.name)
            counted.append(Counted(model, budget, method.paper_percent.get(model)))
    return counted


def table_1(counted: Sequence[Counted]) -> Table:
    """The percentages of Table 1, ours and the paper's side by side; where they differ, why."""
    models = list(dict.fromkeys(c.model for c in counted))
    columns = [Column(title, DIGITS) for model in models for title in (model, "paper")]
    rows = []
    for name in dict.fromkeys(c.budget.method for c in counted):
        of_method = {c.model: c for c in counted if c.budget.method == name}
        cells = [cell for model in models for cell in _beside(of_method[model])]
        rows.append(Row(of_method[models[0]].budget.title, tuple(cells)))
    same = sum(not c.differs for c in counted)
    notes = [f"{same} of {len(counted)} are the paper's to the last digit."]
    notes += [f"{OFF} {title}: {note}" for title, note in _reasons(counted).items()]
    title = "Trainable parameters in percent, counted and as the paper's Table 1 prints them"
    return Table("params-table-1", title, "method", tuple(columns), _block(rows), tuple(notes))


def model_table(counted: Sequence[Counted]) -> Table:
    """The methods in one model: trainable and all parameters, percentage, the paper's."""
    with_paper = any(c.paper_percent is not None for c in counted)
    titles = ["trainable", "all", "%", *(["paper's %"] if with_paper else [])]
    notes: list[str] = []
    rows = []
    for c in counted:
        b = c.budget
        cells = [_integer(b.trainable), _integer(b.total), Cell(b.percent)]
        cells += [Cell(c.paper_percent)] if with_paper else []
        rows.append(Row(b.title, tuple(cells), _marked(b.note, notes)))
    title = f"Trainable parameters, {counted[0].model}"
    columns = tuple(Column(title, DIGITS) for title in titles)
    return Table("params", title, "method", columns, _block(rows), tuple(notes))


def match_table(model: str, matches: Sequence[tuple[Method, Match]]) -> Table:
    """The setting of each method that comes nearest to the wanted number of parameters."""
    notes: list[str] = []
    rows = []
    for method, match in matches:
        setting = ", ".join(f"{key} {value}" for key, value in match.overrides.items())
        off = None if match.difference is None else 100 * match.difference
        cells = (Cell(setting or None), _integer(match.budget.trainable), Cell(off))
        note = match.note or ("" if match.budget.trainable else match.budget.note)
        if method.peft_config == "AdaLoraConfig" and match.overrides:
            note = f"{note}; counted at init_r" if note else "counted at init_r"
        rows.append(Row(method.title, cells, _marked(note, notes)))
    target = matches[0][1].target
    columns = (Column("setting"), Column("trainable"), Column("off by %", 1, signed=True))
    title = f"Nearest to {target:,} trainable parameters, {model}"
    return Table("params-matched", title, "method", columns, _block(rows), tuple(notes))


def match_json(model: str, match: Match) -> dict[str, Any]:
    """A match as `rosa params --match-budget ... --json` prints it."""
    return {
        "model": model,
        "method": match.budget.method,
        "target": match.target,
        "setting": match.overrides,
        "trainable": match.budget.trainable,
        "percent": match.budget.percent,
        "difference": match.difference,
        "note": match.note,
    }


def _beside(counted: Counted) -> tuple[Cell, Cell]:
    percent = counted.budget.percent
    shown = percent if percent is None or not counted.differs else f"{percent:.{DIGITS}f}{OFF}"
    return Cell(shown), Cell(counted.paper_percent)


def _reasons(counted: Sequence[Counted]) -> dict[str, str]:
    return {c.budget.title: c.budget.note for c in counted if c.differs}


def _marked(note: str, notes: list[str]) -> str:
    """The number of a footnote, which is added to `notes`."""
    if not note:
        return ""
    notes.append(f"[{len(notes) + 1}] {note}")
    return f"[{len(notes)}]"


def _integer(value: int | None) -> Cell:
    return Cell(None if value is None else f"{value:,}")


def _block(rows: list[Row]) -> tuple[Block, ...]:
    return (Block("", tuple(rows)),)
