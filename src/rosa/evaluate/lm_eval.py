"""Scores a loaded model or adapter with EleutherAI's lm-evaluation-harness (extra `lm-eval`).

results = run_lm_eval(loaded, find_tasks(["arc_easy"]))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rosa.common.tables.model import Block, Cell, Column, Row, Table
from rosa.data.prompts import check_chat_template
from rosa.errors import RosaError, did_you_mean, errors_as
from rosa.evaluate.folder import EvaluationFolder
from rosa.models.loading import Loaded, quiet

COLUMNS = (Column("shots"), Column("metric"), Column("value", 4))


@dataclass(frozen=True)
class LmEvalTasks:
    """Names of lm-eval tasks, and the `TaskManager` that finds them."""

    names: list[str]
    manager: Any


def find_tasks(names: Sequence[str], task_dir: str | Path | None = None) -> LmEvalTasks:
    """The lm-eval tasks, groups or tags of these names, which may contain the wildcard `*`.

    lm-eval's own tasks are indexed, which takes a while, only for names not found in `task_dir`.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise RosaError(
            f"--harness lm-eval needs the package lm-eval ({error}); pip install lm-eval"
        ) from error
    if task_dir is not None:
        if not Path(task_dir).is_dir():
            raise RosaError(f"there is no folder {task_dir} for --task_dir; check the path")
        own = TaskManager(include_path=str(task_dir), include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return LmEvalTasks(own.match_tasks(list(names)), own)
    manager = TaskManager(include_path=str(task_dir) if task_dir is not None else None)
    for name in names:
        if not manager.match_tasks([name]):
            hint = did_you_mean(name, manager.all_tasks)
            raise RosaError(f"lm-eval has no task {name!r}{hint}; `lm-eval ls tasks` lists them")
    return LmEvalTasks(manager.match_tasks(list(names)), manager)


def run_lm_eval(
    loaded: Loaded, tasks: LmEvalTasks, *, batch_size: int = 16, chat: bool = False, **options: Any
) -> dict[str, Any]:
    """The results of `lm_eval.simple_evaluate(**options)` for a loaded model or adapter.

    `chat` applies the tokenizer's chat template. Raises RosaError if it has none, and for a task
    that cannot be loaded.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    if chat:
        check_chat_template(loaded.tokenizer)
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    # It warns of every model that is not a name.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    with quiet(), errors_as(f"lm-eval cannot run {', '.join(tasks.names)}"):
        model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=tasks.names,
            task_manager=tasks.manager,
            apply_chat_template=chat,
            **{"log_samples": False, **options},
        )
    assert results is not None, "one process has all the results"
    return dict(results)


def write_lm_eval_results(results: dict[str, Any], folder: Path, run: dict[str, Any]) -> Path:
    """Write lm-eval's JSON to `folder`, with `run` (the model's identity) under "rosa"."""
    from lm_eval.utils import handle_non_serializable

    name = f"results_{datetime.now():%Y-%m-%dT%H-%M-%S}.json"
    content = {**results, "rosa": run}
    EvaluationFolder(folder).write_json(name, content, default=handle_non_serializable)
    return folder / name


def results_table(results: dict[str, Any]) -> Table:
    """One row per task (or group) and metric, with standard errors."""
    rows = []
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        shots = str(results["n-shot"].get(task, ""))
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            name = metric if filter_name == "none" else f"{metric} ({filter_name})"
            spread = error if isinstance(error, float) else None
            rows.append(Row(task, (Cell(shots), Cell(name), Cell(value, spread))))
    return Table("lm-eval", "lm-evaluation-harness", "task", COLUMNS, (Block("", tuple(rows)),))
