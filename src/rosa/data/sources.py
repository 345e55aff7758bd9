"""Where training rows come from: a local file, a built-in toy task, or the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosa.assets import ASSETS
from rosa.data.row_files import read_rows
from rosa.errors import RosaError, errors_as

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
    looks_local = source.endswith((".json", ".jsonl")) or source.startswith((".", "/", "~"))
    if looks_local or Path(source).exists():
        return read_rows(Path(source).expanduser())
    from datasets import load_dataset

    toys = ", ".join(toy_tasks())
    with errors_as(
        f"the data '{source}' is neither a file nor one of {toys}; loading it from the hub"
    ):
        rows = load_dataset(source, split="train").to_list()
    if not rows:
        raise RosaError(f"the hub data set '{source}' has no rows in its train split")
    return rows
