"""A loaded model or adapter in EleutherAI's lm-evaluation-harness: log-likelihoods of the choices.

    suite = find_tasks(["arc_easy"])
    results = score(loaded, suite)

The harness decides everything about its tasks; this file hands it the model, and writes what it
finds. The harness is the extra `lm-eval`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.data.prompts import check_chat_template
from rosa.errors import RosaError, did_you_mean
from rosa.models.loading import Loaded, quiet

if TYPE_CHECKING:
    from rich.table import Table

HEADER = ("task", "shots", "metric", "value", "± s.e.")


@dataclass(frozen=True)
class Suite:
    """Names of the harness's tasks, and its index that knows where they are."""

    names: list[str]
    manager: Any


def find_tasks(names: Sequence[str], task_dir: str | Path | None = None) -> Suite:
    """The harness's tasks, groups or tags of these names; `*` stands for any letters.

    `task_dir` holds task YAMLs of your own. The harness's are looked through, which takes a while,
    only for names that are not there.

    Raises RosaError where the package is missing, or a name or the folder is unknown.
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
            return Suite(own.match_tasks(list(names)), own)
    manager = TaskManager(include_path=str(task_dir) if task_dir is not None else None)
    for name in names:
        if not manager.match_tasks([name]):
            hint = did_you_mean(name, manager.all_tasks)
            raise RosaError(f"lm-eval has no task {name!r}{hint}; `lm-eval ls tasks` lists them")
    return Suite(manager.match_tasks(list(names)), manager)


def score(
    loaded: Loaded,
    suite: Suite,
    *,
    batch_size: int = 16,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    log_samples: bool = False,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` finds out about the model.

    Args:
        loaded: the model and its tokenizer, as `rosa.models.loading.load` gives them.
        suite: what `find_tasks` found.
        batch_size: sequences at a time.
        limit: the first so many examples of each task.
        num_fewshot: worked examples; None is each task's own number.
        chat: set the questions in the tokenizer's chat template.
        log_samples: keep every example with its log-likelihoods.

    Raises RosaError for a missing chat template, and for a task that cannot be loaded.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    if chat:
        check_chat_template(loaded.tokenizer)
    with quiet(), _without_chatter():
        model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
        try:
            results = lm_eval.simple_evaluate(
                model=model,
                tasks=suite.names,
                task_manager=suite.manager,
                num_fewshot=num_fewshot,
                limit=limit,
                apply_chat_template=chat,
                log_samples=log_samples,
            )
        except (OSError, ValueError, KeyError) as error:
            raise RosaError(
                f"lm-eval cannot run {', '.join(suite.names)}: {' '.join(str(error).split())[:300]}"
            ) from error
    assert results is not None, "one process has all the results"
    return dict(results)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Without the harness's notes on its own doings; its warnings about a task stay."""
    logger = logging.getLogger("lm_eval")
    about_model = logging.getLogger("lm_eval.models.huggingface")
    before = [(each, each.level) for each in (logger, about_model)]
    logger.setLevel(logging.WARNING)
    about_model.setLevel(logging.ERROR)  # it warns of every model that is no name
    try:
        yield
    finally:
        for each, level in before:
            each.setLevel(level)


def write_results(results: dict[str, Any], folder: Path, run: dict[str, Any]) -> Path:
    """The harness's JSON in `folder`, `run` (what identifies the model) under "rosa"."""
    from lm_eval.utils import handle_non_serializable

    file = folder / f"results_{datetime.now():%Y-%m-%dT%H-%M-%S}.json"
    content = json.dumps(
        {**results, "rosa": run}, indent=2, ensure_ascii=False, default=handle_non_serializable
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise RosaError(f"cannot write {file}: {error.strerror or error}") from None
    return file


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The results as text: one row per task (or group) and metric."""
    found: list[tuple[str, ...]] = []
    for task, metrics in {**results["results"], **results.get("groups", {})}.items():
        shots = str(results["n-shot"].get(task, ""))
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{filter_name}")
            shown = f"{error:.4f}" if isinstance(error, float) else ""
            name = metric if filter_name == "none" else f"{metric} ({filter_name})"
            found.append((task, shots, name, f"{value:.4f}", shown))
    return found


def table(results: dict[str, Any]) -> Table:
    """`rows` for a terminal."""
    from rich.table import Table

    table = Table()
    for name in HEADER:
        table.add_column(name, justify="right" if name in HEADER[3:] else "left")
    for row in rows(results):
        table.add_row(*row)
    return table
