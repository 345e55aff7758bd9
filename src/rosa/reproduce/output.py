"""The tables and figures that `rosa reproduce` writes for a target, with the paper's own."""

from __future__ import annotations

from rosa.common.tables.model import Table
from rosa.common.tables.render import FORMATS
from rosa.compare.results import StudyResults
from rosa.report.tables.build import main_table
from rosa.report.tables.paper import paper_tables
from rosa.report.tables.sections import sections
from rosa.report.tables.write import save, write_tables
from rosa.reproduce.figures import draw_figure3, draw_figure4
from rosa.reproduce.targets import Target

DRAW = {"figure3": draw_figure3, "figure4": draw_figure4}
FIGURES = {"figure3": ["figure3"], "figure4": ["figure4"], "table4": ["figure3", "figure4"]}
HALVES_OF_TABLE_4 = {"figure3": "k_ratio", "figure4": "ablation"}


def write_target_tables(target: Target, study: StudyResults) -> list[Table]:
    """Write a target's tables and the paper's; returns those to print."""
    printed = paper_tables_of(target.name)
    write_tables(study, target.folder)
    save(printed, target.folder, FORMATS)
    return [*map(main_table, sections(study)), *printed]


def draw_target_figures(target: Target, study: StudyResults) -> None:
    """Draw a target's figures, next to its tables."""
    for name in FIGURES.get(target.name, ()):
        DRAW[name](study, target.models[0], target.folder / f"{name}.png")


def paper_tables_of(target: str) -> list[Table]:
    """The paper's tables for a target; its figures 3 and 4 draw the two halves of Table 4."""
    half = HALVES_OF_TABLE_4.get(target)
    tables = paper_tables("table4" if half else target)
    return [table for table in tables if half is None or table.name.endswith(half)]
