"""A study's tables; `rosa.common.tables` is what a table is and how it is printed."""
