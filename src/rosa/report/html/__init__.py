"""`report.html`: one page that holds a whole study and needs nothing else, not even a network."""

from rosa.report.html.page import write_report

__all__ = ["write_report"]
