"""Where training rows come from: a local file, a built-in toy task, or the hub.

Rows keep their source and number, so that an error in row 7,211 can be found.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from rosa.assets import ASSETS
from rosa.data.json_rows import read_rows
from rosa.errors import RosaError

TOY_DATA = ASSETS / "tiny-data"


def toy_tasks() -> list[str]:
    """The names of the training sets that come with the package."""
    return sorted(folder.parent.name for folder in TOY_DATA.glob("*/train.json"))


def load_training_rows(source: str) -> list[dict[str, Any]]:
    """The rows of one `data:` entry of a recipe.

    Raises:
        RosaError: a file that is missing, unreadable or damaged (with its row), a hub id that
            cannot be loaded, or no rows.
    """
    if source in toy_tasks():
        return read_rows(TOY_DATA / source / "train.json")
    looks_local = Path(source).exists() or source.endswith((".json", ".jsonl"))
    if looks_local or source.startswith((".", "/", "~")):
        return read_rows(Path(source).expanduser())
    return _hub_records(source)


def _hub_records(name: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train").to_list()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RosaError(
            f"the data '{name}' is neither a local file nor one of {', '.join(toy_tasks())}, and "
            f"the hub did not give it: {reason}"
        ) from error
    if not rows:
        raise RosaError(f"the hub data set '{name}' has no rows in its train split")
    return rows


def sample(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """A seeded sample of `limit` rows in their own order; all of them without a limit."""
    if limit is None or limit >= len(rows):
        return rows
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in chosen]


def hold_out(rows: list[Any], validation: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Training and validation rows: a seeded split, a share below 1 or a count.

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
