"""Synthetic studies: results with answers on disk, for tests of tables, statistics and reports.

study = synthetic_study(tmp_path)                         # two suites, four methods, three seeds
study = synthetic_study(tmp_path, skills={"lora": 0.6, "rosa": 0.6}, seeds=range(5))

Every example has a difficulty that all runs share, as in real benchmarks: whether two methods get
it right is correlated, and so is whether two seeds of one method do.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rosa.compare.grid import Grid, TrainingSet
from rosa.compare.job import RunGroup
from rosa.compare.results import RunResult, StudyResults
from rosa.data.prompts import instruction_prompt
from rosa.evaluate.results import TaskScore
from rosa.evaluate.tasks import Task
from rosa.methods.registry import load_method
from tests.support.evaluation import load_task

SKILLS = {"lora": 0.6, "ln_tuning": 0.35, "rosa": 0.7, "roae_only": 0.65}
TRAIN_SETS = {"commonsense": ("boolq", "piqa"), "math": ("MultiArith", "gsm8k", "AQuA")}
TOTAL = 3_000_000
NOISE = 0.3  # of a run on an example, added to the example's difficulty


def synthetic_study(
    folder: Path,
    *,
    skills: Mapping[str, float] = SKILLS,
    models: Sequence[str] = ("rosa-tiny",),
    train_sets: Mapping[str, Sequence[str]] = TRAIN_SETS,
    data: Mapping[str, str] | None = None,
    seeds: Iterable[int] = (1, 2, 3),
    examples: int = 60,
    seed_spread: float = 0.02,
    failed: Iterable[tuple[str, int]] = (),
    random_seed: int = 0,
) -> StudyResults:
    """Writes `results.json` and the answers of every run below `folder`, and reads them back.

    Args:
        skills: methods by name, in the order of the grid, with the share they get right.
        train_sets: tasks by training set.
        data: the file of a training set, for the grid; by default one that does not exist.
        examples: questions per task; the i-th task has 10 i more, so that micro is not macro.
        seed_spread: standard deviation of a run's skill around its method's.
        failed: (method, seed) pairs that failed, everywhere.
    """
    rng = random.Random(random_seed)
    seeds, failed = list(seeds), set(failed)
    tasks = {name: [load_task(t) for t in names] for name, names in train_sets.items()}
    hardness = {
        task.name: [rng.random() for _ in range(examples + 10 * i)]
        for suite in tasks.values()
        for i, task in enumerate(suite)
    }
    runs, failures = [], []
    for model in models:
        for train_set, asked in tasks.items():
            for method, skill in skills.items():
                for seed in seeds:
                    name = f"runs/{RunGroup(model, train_set, method).path}/seed-{seed}"
                    if (method, seed) in failed:
                        failures.append({"run": name, "error": "out of memory on purpose"})
                        continue
                    able = skill + rng.gauss(0, seed_spread)
                    scores = [
                        _answer(folder / name / "evaluation", task, hardness[task.name], able, rng)
                        for task in asked
                    ]
                    runs.append(_run(model, train_set, method, seed, name, tuple(scores), rng))
    grid = Grid(
        output_dir=str(folder),
        models=list(models),
        methods=list(skills),
        training_sets={
            n: TrainingSet((data or {}).get(n, f"{n}.json"), [*t]) for n, t in train_sets.items()
        },
        seeds=seeds,
    )
    environment = {"machine": "a synthetic one", "commit": "0" * 7}
    study = StudyResults(
        folder,
        tuple(runs),
        tuple(failures),
        environment=environment,
        grid=dataclasses.asdict(grid),
    )
    study.save()
    return StudyResults.load(folder)


def _answer(
    folder: Path, task: Task, hardness: Sequence[float], able: float, rng: random.Random
) -> TaskScore:
    """One task's answers on disk, and its score."""
    rows: list[dict[str, Any]] = []
    for index, hard in enumerate(hardness):
        label, wrong = _labels(task, index)
        luck = rng.gauss(0, NOISE)
        # A logistic item-response model: able meets hard at even odds.
        right = rng.random() < _share(able, hard, luck)
        silent = not right and rng.random() < 0.1
        prediction = None if silent else label if right else wrong
        rows.append(
            {
                "index": index,
                "prompt": instruction_prompt(f"Question {index} of {task.title} <&_%>?"),
                "response": f"the correct answer is {prediction}" if prediction else "I",
                "prediction": prediction,
                "label": label,
                "correct": right,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{task.name}.jsonl").write_text(lines, encoding="utf-8")
    correct = sum(row["correct"] for row in rows)
    silent = sum(row["prediction"] is None for row in rows)
    values = {"rows": len(rows), "size": task.size, "seen_in_training": task.seen_in_training}
    return TaskScore(task.name, task.title, task.suite, correct, len(rows), silent, **values)


def _share(able: float, hard: float, luck: float) -> float:
    return 1 / (1 + math.exp(-8 * (able - hard + luck)))


def _labels(task: Task, index: int) -> tuple[str, str]:
    """A right and a wrong answer that the task could have."""
    if task.answers:
        turned = [task.answers[(index + i) % len(task.answers)] for i in (0, 1)]
        return turned[0], turned[1]
    if task.filter == "last_number":
        return str(index), str(index + 1)
    return "ABCDE"[index % 5], "ABCDE"[(index + 1) % 5]


def _run(
    model: str,
    train_set: str,
    method: str,
    seed: int,
    folder: str,
    scores: tuple[TaskScore, ...],
    rng: random.Random,
) -> RunResult:
    known = load_method(method)
    trainable = 10_000 * (1 + len(method))
    return RunResult(
        model=model,
        train_set=train_set,
        method=method,
        title=known.title,
        group=known.group,
        seed=seed,
        folder=folder,
        learning_rate=1e-3,
        trainable=trainable,
        total=TOTAL + trainable,
        scores=scores,
        costs={
            "train_seconds": round(60 + 10 * rng.random(), 1),
            "peak_host_bytes": 700_000_000 + rng.randrange(1_000_000),
            "peak_device_bytes": None,
            "joules": None,
        },
    )
