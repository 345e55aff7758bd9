"""What `rosa compare` writes into a study's folder next to `results.json`."""

from __future__ import annotations

from rosa.compare.results import StudyResults
from rosa.report.html import write_report
from rosa.report.plots.study_plots import write_pictures
from rosa.report.tables.write import write_tables

REPORT = "report.html"


def write_study_output(results: StudyResults, finished: bool) -> None:
    """Write the tables, and once the study has finished its figures and `report.html` too."""
    write_tables(results, results.folder / "tables")
    if finished:
        write_pictures(results, results.folder / "figures")
        if results.runs or results.failures:
            write_report(results, results.folder / REPORT)
