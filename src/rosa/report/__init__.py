"""A study as tables, plots and one HTML page."""
