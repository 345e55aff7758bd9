"""A run's folder: its files, the check that it is this run's, and where a run resumes.

recipe.yaml          the resolved recipe; identifies the run that the folder belongs to
.rows                a hash of its rows; a resumed run must have the same
metrics.jsonl        one line per log: step, loss, learning_rate, tokens_per_second, ...
dls_history.jsonl    one line per choice of layers: step, mode, scores, selected
loss.png layers.png  plots of the two
costs.json           time, memory and size, once the run is finished
adapter_*            the adapter, in PEFT's format; README.md is its model card
checkpoint-N/        what `--resume` needs; has this name only when it is complete
.saving/             a checkpoint that is being written, or was when the run was killed
"""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from rosa.common.files import LOCK_FILE, PARTIAL_SUFFIX, atomic_write, check_writable, fsync_tree
from rosa.dls.choice import HISTORY_FILE
from rosa.dls.config import DlsConfig
from rosa.errors import RosaError
from rosa.methods.registry import load_method
from rosa.models.devices import legacy_auto_precision
from rosa.train.recipe import LEGACY_DEFAULTS, Recipe, dump_recipe
from rosa.train.sharded_checkpoint import MOMENTS, SHARDS, is_sharded

WEIGHTS = "adapter_model.safetensors"
# Keys that may change when a run resumes: they do not change what it computes.
FREE_KEYS = {"output_dir", "report_to", "log_steps", "keep_checkpoints", "trust_remote_code"}


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training run."""

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
        return self.path / HISTORY_FILE

    @property
    def draft(self) -> Path:
        """The adapter, until all its files are written."""
        return self.path / ".adapter"

    @property
    def saving(self) -> Path:
        """The checkpoint that is being written."""
        return self.path / ".saving"

    @property
    def finished(self) -> bool:
        """Whether everything that a finished run leaves has been written."""
        return (self.path / WEIGHTS).is_file()

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(filter(_is_complete, self.path.glob("checkpoint-*")), key=step_of)

    def publish_checkpoint(self, step: int) -> None:
        """Moves a checkpoint from `saving` to its place, which at most a damaged one occupies."""
        name = f"checkpoint-{step}"
        fsync_tree(self.saving / name)
        if (self.path / name).exists():
            self._drop(self.path / name)
        (self.saving / name).replace(self.path / name)

    def drop_old_checkpoints(self, keep: int, best: str | None) -> None:
        """Leaves `keep` checkpoints, the newest and the one called `best` among them."""
        found = self.checkpoints()
        spare = [checkpoint for checkpoint in found[:-1] if checkpoint.name != best]
        for checkpoint in spare[: max(0, len(found) - keep)]:
            self._drop(checkpoint)

    def drop_saving(self) -> None:
        """Removes an incomplete checkpoint."""
        shutil.rmtree(self.saving, ignore_errors=True)

    def _drop(self, checkpoint: Path) -> None:
        # Renamed first: a kill must not leave half of it under a checkpoint's name.
        gone = self.saving / f"old-{checkpoint.name}"
        shutil.rmtree(gone, ignore_errors=True)
        self.saving.mkdir(exist_ok=True)
        checkpoint.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def publish_draft(self) -> None:
        """Moves the adapter to its place; its weights last, as they mark the run as finished."""
        fsync_tree(self.draft)
        for name in ("adapter_config.json", WEIGHTS):
            (self.draft / name).replace(self.path / name)
        shutil.rmtree(self.draft)

    def claim(self, recipe: Recipe, resume: bool, rows: str) -> Path | None:
        """Makes the folder this run's; returns the checkpoint to resume from, if any.

        `rows` is the fingerprint of the training and validation rows.

        Raises:
            RosaError: as `check`, other rows than before, or the folder cannot be written.
        """
        self.check(recipe, resume)
        if resume:
            if self.rows.is_file() and self.rows.read_text(encoding="utf-8").strip() != rows:
                raise RosaError(
                    f"--resume: the run in '{self.path}' was started with other rows (its data or "
                    "tokenizer has changed since); restore them, or use another output_dir"
                )
            return next(reversed(self.checkpoints()), None)
        try:
            atomic_write(self.rows, rows + "\n")
            atomic_write(self.recipe, dump_recipe(recipe))
        except OSError as error:
            raise RosaError(
                f"output_dir '{self.path}' cannot be written: {error.strerror}"
            ) from None
        return None

    def check(self, recipe: Recipe, resume: bool) -> None:
        """Whether this run may use the folder; writes nothing.

        Raises:
            RosaError: the folder holds another run or other files, or `--resume` was given for a
                run that does not match or does not exist.
        """
        if resume:
            return self._check_resume(recipe)
        if self.path.exists() and not self.path.is_dir():
            raise RosaError(f"output_dir '{self.path}' is a file; use a folder")
        if self.recipe.is_file():
            raise RosaError(
                f"output_dir '{self.path}' holds another run; continue it with --resume, or use "
                "another --output_dir"
            )
        begun = (self.rows.name, self.recipe.name)  # left by a kill before the run began
        unclaimed = (LOCK_FILE, *begun, *(name + PARTIAL_SUFFIX for name in begun))
        if self.path.is_dir() and any(f.name not in unclaimed for f in self.path.iterdir()):
            raise RosaError(
                f"output_dir '{self.path}' is not empty and holds no run; use another folder"
            )
        check_writable(self.path, "output_dir")

    def _check_resume(self, recipe: Recipe) -> None:
        if not self.recipe.is_file():
            raise RosaError(
                f"--resume: '{self.path}' holds no run (no recipe.yaml); start it without --resume"
            )
        if self.finished:
            raise RosaError(f"--resume: the run in '{self.path}' is already finished")
        if key := recipe_difference(self.read_recipe(), recipe):
            raise RosaError(
                f"--resume: the run in '{self.path}' was started with another {key}; use its own "
                f"recipe ({self.recipe}) or another folder"
            )

    def read_recipe(self) -> dict[str, Any]:
        """The recipe that the run was started with.

        Raises:
            RosaError: it cannot be read.
        """
        try:
            known = dict(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, yaml.YAMLError):
            raise RosaError(
                f"{self.recipe} is damaged; put the run's recipe back there, or delete "
                f"{self.path} to start again"
            ) from None
        if known.get("precision") == "auto" and not known.keys() >= LEGACY_DEFAULTS.keys():
            known["precision"] = legacy_auto_precision()
        return known

    def as_started(self, recipe: Recipe) -> Recipe:
        """`recipe` as the run was started: its values of keys that are newer, and its dtype."""
        known = self.read_recipe()
        fixed = {key: value for key, value in LEGACY_DEFAULTS.items() if key not in known}
        if recipe.precision == "auto":
            fixed["precision"] = known.get("precision", "auto")
        return replace(recipe, **fixed)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in the name of a checkpoint."""
    return int(checkpoint.name.split("-")[-1])


def recipe_difference(before: dict[str, Any], recipe: Recipe) -> str | None:
    """`first_difference` of two recipes of one run.

    A key of `dls` or `adapter` that one of them lacks has its default, and `precision: auto` is
    the precision that the run was started with.
    """
    now = asdict(recipe)
    if recipe.precision == "auto":
        now["precision"] = before.get("precision")
    defaults: dict[str, Any] = {"dls": field_defaults(DlsConfig)}
    if before.get("adapter") != now["adapter"]:  # importing its class imports PEFT
        method = load_method(recipe.method)
        defaults["adapter"] = {**field_defaults(method.config_class), **method.kwargs}
    for key, default in defaults.items():
        if before.get(key) and now[key]:
            before, now = ({**each, key: {**default, **each[key]}} for each in (before, now))
    return first_difference(before, now)


def field_defaults(cls: type) -> dict[str, Any]:
    """The default of each field of a dataclass that has one."""
    found = {}
    for field in fields(cls):
        if field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not MISSING:
            found[field.name] = field.default
    return found


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first recipe key whose value changed and matters, as `key (old, now new)`.

    A key that did not exist yet when `before` was written is no difference.
    """
    for key, value in now.items():
        if key not in FREE_KEYS and key in before and before[key] != value:
            return _change(key, before[key], value)
    return None


def _change(key: str, old: Any, new: Any) -> str:
    """The innermost key of two different values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                return _change(f"{key}.{name}", old.get(name), new.get(name))
    return f"`{key}` ({old}, now {new})"


def _is_complete(checkpoint: Path) -> bool:
    """Whether every file exists and is complete; truncated files are noticed."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    archives = [checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    if not is_sharded(checkpoint):
        archives.append(checkpoint / "optimizer.pt")
        weights_are_there = _is_readable(checkpoint / WEIGHTS)
    else:  # its metadata is written last
        weights_are_there = all((checkpoint / p / ".metadata").is_file() for p in (SHARDS, MOMENTS))
    return (
        checkpoint.name == f"checkpoint-{state.get('global_step')}"
        and all(map(zipfile.is_zipfile, archives))
        and weights_are_there
    )


def _is_readable(weights: Path) -> bool:
    from rosa.attention.load import read_shapes  # imports torch

    try:
        return bool(read_shapes(weights))
    except RosaError:
        return False


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the records after `step` from a JSONL file: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # incomplete: the run was killed
        if record.get("step", 0) <= step:
            kept.append(line)
    atomic_write(path, "".join(f"{line}\n" for line in kept))
