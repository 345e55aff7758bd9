"""The table of built-in tasks, from their YAML files."""

from __future__ import annotations

from rosa.evaluate.tasks import Task, built_in_tasks

HEAD = "| task | suite | questions | answer | rows without `--data` | citation |"


def tasks_table() -> str:
    """A row per task: where its questions come from and how its answers are read."""
    rows = [_row(task) for task in built_in_tasks().values()]
    return "\n".join([HEAD, "|---|---|---:|---|---|---|", *rows])


def _row(task: Task) -> str:
    labels = ", ".join(f"`{label}`" for label in task.answers)
    source = "in the package" if task.packaged else f"`{task.hub.path}`" if task.hub else "none"
    seen = f" † {', '.join(task.seen_in_training)}" if task.seen_in_training else ""
    cells = [
        f"`{task.name}`{seen}",
        task.suite,
        f"{task.size:,}",
        f"`{task.filter}`" + (f": {labels}" if labels else ""),
        source,
        task.citation,
    ]
    return f"| {' | '.join(cells)} |"
