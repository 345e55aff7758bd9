"""`report.html`: one page that holds a whole study and needs nothing else, not even a network.

    from rosa.compare.results import StudyResults
    from rosa.report.html import write_report
    write_report(StudyResults.load("runs/study"), "runs/study/report.html")

Tables and plots are plain HTML and SVG, written here; scripts sort the tables and page through the
examples. The template folder holds page, style and scripts, which are put into the one file.
"""

from rosa.report.html.page import write_report

__all__ = ["write_report"]
