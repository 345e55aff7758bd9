"""The answers of a finished evaluation, read by another protocol's rules; no model is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rosa.common.files import lock_folder
from rosa.errors import RosaError
from rosa.evaluate.answers import PROTOCOLS
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.requests import protocol_note
from rosa.evaluate.results import Results, TaskScore
from rosa.evaluate.tasks import Task, built_in_tasks, resolve_tasks

Record = dict[str, Any]


def rescore(
    folder: str | Path, protocol: str, out: str | Path, tasks: Sequence[str | Task] = ()
) -> Results:
    """Read every answer in `folder` by the rules of `protocol`; answers and results go to `out`.

    `out` is then as good as an evaluation under that protocol, and one can go on with it.
    `tasks` names the YAML files of tasks that are not built in.

    Raises RosaError where `folder` holds no finished evaluation, or was read by these rules
    already, or has responses cut where the old rules found their answer, a task is unknown, or
    `out` holds something else.
    """
    if protocol not in PROTOCOLS:
        raise RosaError(f"unknown protocol {protocol!r}; say one of {', '.join(PROTOCOLS)}")
    source, target = EvaluationFolder(Path(folder)), EvaluationFolder(Path(out))
    run, before = (_read(source.path / name) for name in ("run.json", "results.json"))
    if run.get("protocol") == protocol:
        raise RosaError(f"{folder} is scored by the protocol {protocol} already; name another")
    known = built_in_tasks() | {task.name: task for task in (resolve_tasks(tasks) if tasks else ())}
    read = {}
    for entry in before["tasks"]:
        task = _known_task(known, entry["name"])
        _refuse_cut(task, run, source.path)
        records = list(source.read_lines(task.name).values())
        if len(records) != entry["scored"]:
            raise RosaError(
                f"{folder} has {len(records)} answers to {task.name} where its results count "
                f"{entry['scored']}; run the same `rosa evaluate` again first"
            )
        read[task.name] = [_judged(task, record, protocol) for record in records]
    hashes = {name: run["tasks"][name] for name in read}
    target.claim({**_without(run, "tasks"), "protocol": protocol, "full_responses": True}, hashes)
    results = _results(before, read, protocol)
    with lock_folder(target.path):
        for name, records in read.items():
            target.write_lines(name, records)
        target.write_results(results)
    return results


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RosaError(
            f"there is no {file.name} in {file.parent}; name the folder of an evaluation that has "
            "finished"
        ) from None
    except (OSError, ValueError) as error:
        raise RosaError(f"cannot read {file} ({error}); score it again") from None


def _known_task(known: dict[str, Task], name: str) -> Task:
    if name not in known:
        raise RosaError(f"the task {name!r} is not built in; name its YAML file with --tasks")
    return known[name]


def _refuse_cut(task: Task, run: dict[str, Any], folder: Path) -> None:
    if not run.get("full_responses", True) and task.early_stop(run["protocol"]):
        raise RosaError(
            f"the responses to {task.name} in {folder} end where the protocol {run['protocol']} "
            "found their answer, and other rules need them whole; evaluate with --full_responses "
            "and another --out, and rescore that"
        )


def _judged(task: Task, record: Record, protocol: str) -> Record:
    prediction = task.parse(record["response"], protocol)
    correct = task.is_correct(prediction, record["label"])
    return {**record, "prediction": prediction, "correct": correct}


def _results(before: dict[str, Any], read: dict[str, list[Record]], protocol: str) -> Results:
    """The old results with new counts; what they say about speed no longer holds."""
    scores = [_score(entry, read[entry["name"]]) for entry in before["tasks"]]
    settings = _without(before["settings"], "tokens_per_second", "tokens_per_response")
    settings |= {"protocol": protocol, "full_responses": True}
    # Footnotes that follow from the scores are made anew; the rest are kept.
    old = {protocol_note(before["settings"]["protocol"]), *Results(scores, settings).footnotes()}
    kept = [note for note in before["notes"] if note not in old]
    return Results(scores, settings, [protocol_note(protocol), *kept])


def _score(entry: dict[str, Any], records: Sequence[Record]) -> TaskScore:
    names = {field.name for field in fields(TaskScore)}
    score = TaskScore(**{key: value for key, value in entry.items() if key in names})
    return replace(
        score,
        seen_in_training=tuple(score.seen_in_training),
        correct=sum(record["correct"] for record in records),
        unparsable=sum(record["prediction"] is None for record in records),
    )


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
