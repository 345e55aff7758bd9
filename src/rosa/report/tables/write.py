"""All tables of a study, and the tests behind their stars, into a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rosa.common.files import atomic_write
from rosa.common.tables.model import Table
from rosa.common.tables.render import FORMATS
from rosa.compare.job import folder_name
from rosa.compare.results import StudyResults
from rosa.report.tables import differences, paper
from rosa.report.tables.build import average_table, difference_table, main_table
from rosa.report.tables.sections import Section, TableOptions, sections

SIGNIFICANCE = "significance.json"


def write_tables(
    study: StudyResults,
    out_dir: str | Path,
    options: TableOptions | None = None,
    formats: Iterable[str] = tuple(FORMATS),
) -> list[Path]:
    """Write every table in every format, and `significance.json`; returns the files.

    A study without a finished run has no tables. Files of earlier calls are replaced.

    Raises:
        RosaError: the options name a method that the study does not have, or a file is damaged.
    """
    options = options or TableOptions()
    found = sections(study, options)
    folder = Path(out_dir)
    files = save([table for section in found for table in tables_of(section)], folder, formats)
    if found:
        every = [d for section in found for d in section.all_differences]
        content = differences.to_json(every, options.star, options.holm)
        files.append(_replace(folder / SIGNIFICANCE, json.dumps(content, indent=1) + "\n"))
    return files


def tables_of(section: Section) -> list[Table]:
    """The tables of one training set and suite.

    The scores, the paper's where it has the same tasks and models, the averages by model where
    there are several, and the differences where there is a baseline.
    """
    tables: list[Table | None] = [
        main_table(section),
        paper.matching_table([task.name for task in section.tasks], section.models),
        average_table(section) if len(section.models) > 1 else None,
        difference_table(section) if section.all_differences else None,
    ]
    return [table for table in tables if table is not None]


def save(tables: Sequence[Table], folder: Path, formats: Iterable[str]) -> list[Path]:
    """Each table in each format, one file each."""
    files = []
    for table in tables:
        for name in formats:
            suffix, render = FORMATS[name]
            file = folder / (folder_name(table.name.replace("/", "-")) + suffix)
            files.append(_replace(file, render(table)))
    return files


def _replace(file: Path, content: str) -> Path:
    """In one step: a reader sees the old table or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, content)
    return file
