"""The paper's tables and figures: targets, dry run, figures."""
