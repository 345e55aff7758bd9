"""Reads the stored answers of a finished evaluation by another protocol; needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosa.errors import RosaError
from rosa.evaluate.answer_filters import PROTOCOLS
from rosa.evaluate.folder import EvaluationFolder
from rosa.evaluate.requests import protocol_note, unparsable_note
from rosa.evaluate.results import Results, TaskScore
from rosa.evaluate.tasks import Task, built_in_tasks, resolve_tasks


def rescore(
    folder: str | Path, protocol: str, out: str | Path, tasks: Sequence[str | Task] = ()
) -> Results:
    """Read every answer in `folder` by the rules of `protocol`; answers and results go to `out`.

    `out` then equals an evaluation under that protocol and can be resumed as one. `tasks` lists
    the YAML files of tasks that are not built in. Raises RosaError for responses that end where
    the old protocol found the answer.
    """
    if protocol not in PROTOCOLS:
        raise RosaError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    source, target = EvaluationFolder(Path(folder)), EvaluationFolder(Path(out))
    run, before = map(source.read_json, ("run.json", "results.json"))
    if run.get("protocol") == protocol:
        raise RosaError(f"{folder} is already scored by the protocol {protocol}; choose another")
    known = built_in_tasks() | {task.name: task for task in (resolve_tasks(tasks) if tasks else ())}
    rescored: dict[str, list[dict[str, Any]]] = {}
    scores, old_hints, hints = [], [], []
    for entry in before["tasks"]:
        if entry["name"] not in known:
            raise RosaError(
                f"the task {entry['name']!r} is not built in; give its YAML file with --tasks"
            )
        task = known[entry["name"]]
        _check_not_cut(task, run, source.path)
        records = list(source.read_answers(task.name).values())
        if len(records) != entry["scored"]:
            raise RosaError(
                f"{folder} has {len(records)} answers to {task.name} where its results count "
                f"{entry['scored']}; run the same `rosa evaluate` again first"
            )
        rescored[task.name] = [task.judged(record, protocol) for record in records]
        scores.append(task.score(rescored[task.name], entry["rows"]))
        old_hints.append(unparsable_note(task, records))
        hints.append(unparsable_note(task, rescored[task.name]))
    hashes = {name: run["tasks"][name] for name in rescored}
    target.claim({**_without(run, "tasks"), "protocol": protocol, "full_responses": True}, hashes)
    kept = [note for note in before["notes"] if note not in old_hints]
    results = _results({**before, "notes": kept}, scores, protocol)
    results.notes.extend(filter(None, hints))
    with target.in_use():
        for name, records in rescored.items():
            target.write_answers(name, records)
        target.write_results(results)
    return results


def _check_not_cut(task: Task, run: dict[str, Any], folder: Path) -> None:
    if not run.get("full_responses", True) and task.early_stop(run["protocol"]):
        raise RosaError(
            f"the responses to {task.name} in {folder} end where the protocol {run['protocol']} "
            "found the answer, and other protocols need complete ones; evaluate with "
            "--full_responses and another --out, and rescore that"
        )


def _results(before: dict[str, Any], scores: list[TaskScore], protocol: str) -> Results:
    """The old settings and notes with new scores, without what they say about speed."""
    settings = _without(before["settings"], "tokens_per_second", "tokens_per_response")
    settings |= {"protocol": protocol, "full_responses": True}
    # Footnotes that follow from the scores are computed again; the others are kept.
    old = {protocol_note(before["settings"]["protocol"]), *Results(scores, settings).footnotes()}
    kept = [note for note in before["notes"] if note not in old]
    return Results(scores, settings, [protocol_note(protocol), *kept])


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
