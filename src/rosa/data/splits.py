"""Seeded samples and splits of rows."""

from __future__ import annotations

import random
from typing import Any

from rosa.errors import RosaError


def sample(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """A seeded sample of `limit` rows in their own order; all of them without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in chosen]


def hold_out(rows: list[Any], validation: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Training and validation rows: a seeded split, `validation` a share below 1 or a count.

    Raises:
        RosaError: `validation` leaves nothing to train on.
    """
    count = round(validation * len(rows)) if validation < 1 else int(validation)
    if count >= len(rows):
        raise RosaError(
            f"validation: {validation:g} holds out {count} of {len(rows)} rows and leaves none to "
            "train on; lower it"
        )
    held = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for i, row in enumerate(rows) if i not in held]
    return train, [rows[i] for i in sorted(held)]
