"""A run's folder: what is in it, whose it is, and where an interrupted run goes on.

recipe.yaml          the resolved recipe; says which run the folder holds
.rows                a hash of its rows; a resumed run must have the same
metrics.jsonl        one line per log: step, loss, learning_rate, tokens_per_second, ...
dls_history.jsonl    one line per choice of layers: step, mode, scores, selected
loss.png layers.png  the same, drawn
costs.json           time, memory and size, once the run is finished
adapter_*            the adapter, in PEFT's format; README.md is its model card
checkpoint-N/        what `--resume` needs; has its name only once it is whole
.saving/             a checkpoint that is being written, or was when the run was killed
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rosa.common.files import LOCK_FILE, PARTIAL_SUFFIX, atomic_write, fsync_tree, unwritable_reason
from rosa.errors import RosaError
from rosa.train.recipe import Recipe, dump_recipe
from rosa.train.sharded_checkpoint import MOMENTS, SHARDS, is_sharded

WEIGHTS = "adapter_model.safetensors"
# A resumed run may differ from its first part in how it reports, not in what it computes.
FREE_KEYS = {"output_dir", "report_to", "log_steps", "keep_checkpoints", "trust_remote_code"}


@dataclass(frozen=True)
class RunFolder:
    """The paths of one training run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def rows(self) -> Path:
        return self.path / ".rows"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def dls_history(self) -> Path:
        return self.path / "dls_history.jsonl"

    @property
    def draft(self) -> Path:
        """Where the adapter is written before everything beside it is there."""
        return self.path / ".adapter"

    @property
    def saving(self) -> Path:
        """Where a checkpoint is written until it is whole."""
        return self.path / ".saving"

    def publish_checkpoint(self, step: int) -> None:
        """Gives the checkpoint in `saving` its place; what is there already is a damaged one."""
        name = f"checkpoint-{step}"
        fsync_tree(self.saving / name)
        if (self.path / name).exists():
            self._drop(self.path / name)
        (self.saving / name).replace(self.path / name)

    def drop_old_checkpoints(self, keep: int, best: str | None) -> None:
        """Leaves `keep` checkpoints, the newest and the one called `best` among them."""
        found = self.checkpoints()
        kept = {checkpoint.name for checkpoint in found[-1:]} | {best}
        spare = [checkpoint for checkpoint in found if checkpoint.name not in kept]
        too_many = len(found) - max(keep, len(found) - len(spare))
        for checkpoint in spare[: max(0, too_many)]:
            self._drop(checkpoint)

    def drop_saving(self) -> None:
        """Removes what was never finished."""
        shutil.rmtree(self.saving, ignore_errors=True)

    def _drop(self, checkpoint: Path) -> None:
        # Out of the way first: a kill must not leave half of it under a checkpoint's name.
        gone = self.saving / f"old-{checkpoint.name}"
        shutil.rmtree(gone, ignore_errors=True)
        self.saving.mkdir(exist_ok=True)
        checkpoint.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def publish_draft(self) -> None:
        """Moves the adapter to its place; its weights last, for they say that the run is done."""
        fsync_tree(self.draft)
        for name in ("adapter_config.json", WEIGHTS):
            (self.draft / name).replace(self.path / name)
        shutil.rmtree(self.draft)

    @property
    def finished(self) -> bool:
        """Whether everything that a finished run leaves has been written."""
        return (self.path / WEIGHTS).is_file()

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [c for c in self.path.glob("checkpoint-*") if _is_complete(c)]
        return sorted(found, key=lambda c: int(c.name.split("-")[-1]))

    def claim(self, recipe: Recipe, resume: bool, rows: str) -> Path | None:
        """Make the folder this run's, and return the checkpoint to go on from, if any.

        `rows` is the fingerprint of what is trained on.

        Raises:
            RosaError: as `check`, the rows are others than before, or the folder cannot be written.
        """
        self.check(recipe, resume)
        if resume:
            if self.rows.is_file() and self.rows.read_text(encoding="utf-8").strip() != rows:
                raise RosaError(
                    f"--resume: the rows are not those that the run in '{self.path}' began with "
                    "(its data or tokenizer changed); put them back, or start in another folder"
                )
            checkpoints = self.checkpoints()
            return checkpoints[-1] if checkpoints else None
        try:
            atomic_write(self.rows, rows + "\n")
            atomic_write(self.recipe, dump_recipe(recipe))
        except OSError as error:
            raise RosaError(
                f"output_dir '{self.path}' cannot be written: {error.strerror}"
            ) from None
        return None

    def check(self, recipe: Recipe, resume: bool) -> None:
        """Whether this run may have the folder; touches nothing.

        Raises:
            RosaError: the folder holds another run or other files, or `--resume` was asked for a
                run that does not match or is not there.
        """
        if resume:
            return self._check_reopening(recipe)
        if self.path.exists() and not self.path.is_dir():
            raise RosaError(f"output_dir '{self.path}' is a file; name a folder")
        if self.recipe.is_file():
            raise RosaError(
                f"output_dir '{self.path}' holds another run; go on with it by --resume, or name "
                "another folder with --output_dir"
            )
        begun = [
            name + part
            for name in (self.rows.name, self.recipe.name)
            for part in ("", PARTIAL_SUFFIX)
        ]
        unclaimed = (LOCK_FILE, *begun)  # left by a kill before the run began
        if self.path.is_dir() and any(f.name not in unclaimed for f in self.path.iterdir()):
            raise RosaError(
                f"output_dir '{self.path}' is not empty and holds no run; name another folder"
            )
        self._check_writable()

    def _check_writable(self) -> None:
        if why := unwritable_reason(self.path):
            raise RosaError(f"output_dir '{self.path}': {why}; name another folder")

    def read_recipe(self) -> dict[str, Any]:
        """The recipe that the run was started with.

        Raises:
            RosaError: it cannot be read.
        """
        try:
            return dict(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise RosaError(
                f"{self.recipe} is damaged; put the run's recipe back there, or delete "
                f"{self.path} to start again"
            ) from None

    def _check_reopening(self, recipe: Recipe) -> None:
        if not self.recipe.is_file():
            raise RosaError(
                f"--resume: '{self.path}' holds no run (no recipe.yaml); start it without --resume"
            )
        if self.finished:
            raise RosaError(f"--resume: the run in '{self.path}' is already finished")
        if key := first_difference(self.read_recipe(), asdict(recipe)):
            raise RosaError(
                f"--resume: the run in '{self.path}' was started with another {key}; use its own "
                f"recipe ({self.recipe}) or name another folder"
            )


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first recipe key whose value changed and matters, as `key (old, now new)`."""
    for key, value in now.items():
        if key not in FREE_KEYS and before.get(key) != value:
            return _change(key, before.get(key), value)
    return None


def _change(key: str, old: Any, new: Any) -> str:
    """The innermost key of two different values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return _change(f"{key}.{name}", old.get(name), new.get(name))
    return f"`{key}` ({old}, now {new})"


def _is_complete(checkpoint: Path) -> bool:
    """Whether every file is there and whole: one that was cut after it was written is noticed."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    archives = [checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    if not is_sharded(checkpoint):
        archives.append(checkpoint / "optimizer.pt")
        weights_are_there = _is_readable(checkpoint / WEIGHTS)
    else:  # their table of contents is written last
        weights_are_there = all((checkpoint / p / ".metadata").is_file() for p in (SHARDS, MOMENTS))
    return (
        checkpoint.name == f"checkpoint-{state.get('global_step')}"
        and all(map(zipfile.is_zipfile, archives))
        and weights_are_there
    )


def _is_readable(weights: Path) -> bool:
    from rosa.roae.load import read_shapes

    try:
        return bool(read_shapes(weights))
    except RosaError:
        return False


def drop_lines_after(path: Path, step: int) -> None:
    """Cut a JSONL file back to its records up to `step`: a resumed run writes the rest again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # torn by the kill
        if record.get("step", 0) <= step:
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))
