"""An evaluation's folder: what it belongs to, the answers so far, and the results.

run.json       what the folder belongs to: model, protocol, and each task's fingerprint
<task>.jsonl   one line per example, written as it is answered
results.json   scores and settings; results.md is the same as a table
forgetting.json  loss on plain text before and after (`rosa.evaluate.forgetting`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rosa.common.files import (
    LOCK_FILE,
    atomic_write,
    check_writable,
    lock_folder,
    translate_disk_errors,
)
from rosa.errors import RosaError
from rosa.evaluate.forgetting import Forgetting
from rosa.evaluate.results import Results

FORGETTING = "forgetting.json"
LEGACY_DEFAULTS = {"full_responses": True}  # in a run.json older than the key


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of one evaluation."""

    path: Path

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Locks the folder for this process; raises RosaError for a disk that cannot be written."""
        hint = "free some space, then rerun the same command to resume"
        with lock_folder(self.path), translate_disk_errors(self.path, lambda: hint):
            yield

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises RosaError if the folder cannot be written or holds a run of other settings."""
        before = self._read_run()
        if before:
            known = {key: value for key, value in before.items() if key in settings}
            self._compare(known, settings)
        check_writable(self.path)

    def claim(self, run: Mapping[str, Any], tasks: Mapping[str, str]) -> None:
        """Make the folder this run's, or add tasks to it; `tasks` maps names to fingerprints.

        Raises RosaError, writing nothing, if the folder holds another run or other files.
        """
        before = self._read_run()
        known: dict[str, str] = before.pop("tasks", {})
        if before:
            self._compare(before, run)
        for name, hash in tasks.items():
            if known.get(name, hash) != hash:
                raise RosaError(
                    f"{self.path} holds answers to other questions of the task {name} (its data, "
                    "rules or sample changed); choose another folder with --out"
                )
        self.write_json("run.json", {**run, "tasks": {**known, **tasks}})

    def write_forgetting(self, result: Forgetting, run: Mapping[str, Any]) -> None:
        """Write `forgetting.json`, unless the folder holds answers of another model than `run`."""
        before = self._read_run()
        self._compare({key: before[key] for key in run if key in before}, run if before else {})
        self.write_json(FORGETTING, {**asdict(result), **run})

    def read_json(self, name: str) -> dict[str, Any]:
        """`run.json` or `results.json`."""
        file = self.path / name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RosaError(
                f"there is no {name} in {self.path}; give the folder of a finished evaluation"
            ) from None
        except (OSError, ValueError) as error:
            raise RosaError(f"cannot read {file} ({error}); choose another folder") from None
        if not isinstance(content, dict):
            raise RosaError(f"{file} is not a JSON object; choose another folder")
        return content

    def write_json(self, name: str, content: Mapping[str, Any], default: Any = None) -> None:
        """Write a JSON file, and the folder if it is missing; `default` is that of `json.dumps`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n"
            atomic_write(self.path / name, text)
        except OSError as error:
            raise RosaError(f"cannot write to {self.path}: {error.strerror or error}") from None

    def _read_run(self) -> dict[str, Any]:
        if self.path.exists() and not self.path.is_dir():
            raise RosaError(f"{self.path} is a file; choose a folder with --out")
        if (self.path / "run.json").is_file():
            return self.read_json("run.json")
        if self.path.is_dir() and {f.name for f in self.path.iterdir()} - {LOCK_FILE, FORGETTING}:
            raise RosaError(
                f"{self.path} is not empty and holds no evaluation; choose another folder with "
                "--out"
            )
        return {}

    def _compare(self, before: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        for key in [*run, *before]:
            was, now = (each.get(key, LEGACY_DEFAULTS.get(key)) for each in (before, run))
            if was != now:
                raise RosaError(
                    f"{self.path} holds another run: its {key} is {was!r}, now {now!r}; choose "
                    "another folder with --out"
                )

    def read_answers(self, task: str) -> dict[int, dict[str, Any]]:
        """The answered examples of `task`, by index; a partly written last line is removed."""
        file = self.path / f"{task}.jsonl"
        if not file.is_file():
            return {}
        content = file.read_bytes()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            with file.open("r+b") as stream:
                stream.truncate(len(complete))
        answers: dict[int, dict[str, Any]] = {}
        for number, line in enumerate(complete.decode("utf-8").split("\n")[:-1], 1):
            try:
                record = json.loads(line)
                answers[record["index"]] = record
            except (ValueError, KeyError, TypeError):
                raise RosaError(
                    f"{file}, row {number} is damaged; delete that line to ask its example again"
                ) from None
        return answers

    def append_answers(self, task: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Add lines to the task's file."""
        with (self.path / f"{task}.jsonl").open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(_lines(records))

    def write_answers(self, task: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write the task's complete file."""
        atomic_write(self.path / f"{task}.jsonl", _lines(records))

    def write_results(self, results: Results) -> None:
        """Write `results.json` and `results.md`."""
        self.write_json("results.json", results.to_json())
        atomic_write(self.path / "results.md", results.markdown())


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
