"""The one exception a user may see: a sentence that says what is wrong, where, and what to do."""

from __future__ import annotations


class RosaError(ValueError):
    """Bad input. The command line prints its message, without a traceback, and exits with 2."""
