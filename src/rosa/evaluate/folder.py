"""An evaluation's folder: whose it is, what has been scored, and where an interrupted run goes on.

run.json       what the folder belongs to: model, protocol, and each task's fingerprint
<task>.jsonl   one line per example, written as it goes
results.json   scores and settings; results.md is the same as a table
forgetting.json  loss on plain text before and after (`rosa.evaluate.forgetting`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rosa.common.files import LOCK_FILE, atomic_write
from rosa.errors import RosaError
from rosa.evaluate.forgetting import Forgetting
from rosa.evaluate.results import Results

FORGETTING = "forgetting.json"
BEFORE_ITS_TIME = {"full_responses": True}  # of runs that are older than the key


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of one evaluation."""

    path: Path

    def claim(self, run: dict[str, Any], tasks: dict[str, str]) -> None:
        """Make the folder this run's, or go on with it where it already is.

        `run` decides the answers; `tasks` maps names to fingerprints. More tasks may join later.
        Raises RosaError, touching nothing, where the folder holds another run or other files.
        """
        file = self.path / "run.json"
        before = self._read_run(file)
        known: dict[str, str] = before.pop("tasks", {})
        if before:
            self._compare(before, run)
        for name, hash in tasks.items():
            if known.get(name, hash) != hash:
                raise RosaError(
                    f"{self.path} holds answers to other questions of the task {name} (its data, "
                    "rules or sample changed); name another folder with --out"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write(file, json.dumps({**run, "tasks": {**known, **tasks}}, indent=2) + "\n")
        except OSError as error:
            raise RosaError(f"cannot write to {self.path}: {error.strerror or error}") from None

    def write_forgetting(self, result: Forgetting, run: dict[str, Any]) -> None:
        """`forgetting.json`; `run` is the model's identity (`rosa.models.identity`).

        Raises RosaError where the folder holds another model's answers or other files.
        """
        before = self._read_run(self.path / "run.json")
        self._compare({key: before[key] for key in run if key in before}, run if before else {})
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            content = json.dumps({**asdict(result), **run}, indent=2, ensure_ascii=False)
            atomic_write(self.path / FORGETTING, content + "\n")
        except OSError as error:
            raise RosaError(f"cannot write to {self.path}: {error.strerror or error}") from None

    def _read_run(self, file: Path) -> dict[str, Any]:
        if self.path.exists() and not self.path.is_dir():
            raise RosaError(f"{self.path} is a file; name a folder with --out")
        if not file.is_file():
            ours = (LOCK_FILE, FORGETTING)
            if self.path.is_dir() and any(f.name not in ours for f in self.path.iterdir()):
                raise RosaError(
                    f"{self.path} is not empty and holds no evaluation; name another folder with "
                    "--out"
                )
            return {}
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RosaError(f"cannot read {file} ({error}); name another folder") from None
        if not isinstance(before, dict):
            raise RosaError(f"{file} is not a run's record; name another folder with --out")
        return before

    def _compare(self, before: dict[str, Any], run: dict[str, Any]) -> None:
        for key in [*run, *before]:
            was, now = (each.get(key, BEFORE_ITS_TIME.get(key)) for each in (before, run))
            if was != now:
                raise RosaError(
                    f"{self.path} holds another run: its {key} is {was!r}, now {now!r}; name "
                    "another folder with --out"
                )

    def read_lines(self, task: str) -> dict[int, dict[str, Any]]:
        """The examples of `task` that are done, by index; a torn last line is cut off the file."""
        file = self.path / f"{task}.jsonl"
        if not file.is_file():
            return {}
        content = file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with file.open("r+b") as torn:
                torn.truncate(len(whole))
        done: dict[int, dict[str, Any]] = {}
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                done[record["index"]] = record
            except (ValueError, KeyError, TypeError):
                raise RosaError(
                    f"{file}, row {number} is damaged; delete that line and its example is asked "
                    "again"
                ) from None
        return done

    def open(self, task: str) -> TextIO:
        """The task's file, to append lines to."""
        return (self.path / f"{task}.jsonl").open("a", encoding="utf-8", newline="\n")

    def write_lines(self, task: str, records: Iterable[dict[str, Any]]) -> None:
        """The task's whole file at once."""
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        atomic_write(self.path / f"{task}.jsonl", "".join(lines))

    def write_results(self, results: Results) -> None:
        """`results.json` and `results.md`."""
        content = json.dumps(results.to_json(), indent=2, ensure_ascii=False) + "\n"
        atomic_write(self.path / "results.json", content)
        atomic_write(self.path / "results.md", results.markdown())
