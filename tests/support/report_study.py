"""Studies that hold all a report can show: curves, layer choices, tuning, costs, odd texts."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosa.compare.results import StudyResults
from tests.support.synthetic_study import synthetic_study

NASTY = (
    "</script><script>window.broken = true</script>",
    "<img src=x onerror='window.broken = true'>",
    "<!-- <script> ]]> {{ 7 * 7 }} {% raw %}",
    "a\x00b\x07c\x1bd\x7f \u2028 \u2029 \x85 end",
    "half a pair: \ud83d, an emoji: 😀, rtl: \u202eabc",
    "",
    "&lt;b&gt; &amp; \"quotes\" 'and' `ticks`\n\n\ttabs",
)


def rich_study(folder: Path, *, layers: int = 6, choices: int = 20, **options: Any) -> StudyResults:
    """A synthetic study with everything that real runs leave in their folders."""
    rng = random.Random(1)
    study = synthetic_study(folder, **options)
    runs = []
    for run in study.runs:
        place = folder / run.folder
        _write(place / "metrics.jsonl", _metrics(rng))
        if run.group == "ours":
            _write(place / "dls_history.jsonl", _history(rng, layers, choices))
        costs = {
            "train_seconds": 60 + 30 * rng.random() + len(run.method),
            "step_seconds_median": 0.15 + 0.1 * rng.random(),
            "tokens_per_second": 8000 + 500 * rng.random(),
            "peak_host_bytes": 700e6 + 1e8 * rng.random(),
            "peak_device_bytes": None,
            "adapter_bytes": 4 * run.trainable,
            "forgetting": 0.2 * rng.random() - 0.02,
        }
        runs.append(dataclasses.replace(run, costs=costs))
    tuning = [
        {
            "model": model,
            "train_set": train_set,
            "method": method,
            "losses": {"0.0003": 0.31 + 0.1 * rng.random(), "0.001": 0.3, "0.003": None},
            "chosen": 0.001,
        }
        for model, train_set, method in dict.fromkeys(
            (run.model, run.train_set, run.method) for run in study.runs
        )
    ]
    environment = {
        "machine": "Intel(R) Xeon(R) Processor",
        "cores": 2,
        "device": "cpu",
        "python": "3.11.2",
        "versions": {"rosa-peft": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "commit": "58bccb3",
        "date": "2026-01-02",
    }
    rich = dataclasses.replace(
        study, runs=tuple(runs), tuning=tuple(tuning), environment=environment
    )
    rich.save()
    return StudyResults.load(folder)


def spoil(study: StudyResults, texts: Sequence[str] = NASTY) -> StudyResults:
    """The same study with nasty texts wherever text comes from a model, a file or a user."""
    for run in study.runs:
        for score in run.scores:
            file = study.folder / run.folder / "evaluation" / f"{score.name}.jsonl"
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            for i, row in enumerate(rows):
                text = texts[i % len(texts)]
                row["response"] = text
                row["prompt"] += text
                row["prediction"] = row["prediction"] and row["prediction"] + text
                row["label"] += text
            _write(file, rows)
    runs = [
        dataclasses.replace(run, title=f"{run.title} <b>{texts[0]}\x00</b>") for run in study.runs
    ]
    failures = tuple({"run": f"runs/{text}", "error": text} for text in texts)
    grid = {**study.grid, "note": "".join(texts).encode("utf-8", "replace").decode()}
    return dataclasses.replace(study, runs=tuple(runs), failures=failures, grid=grid)


def _metrics(rng: random.Random) -> list[dict[str, Any]]:
    pace = rng.uniform(4, 8)
    records = [
        {"step": step, "loss": 0.2 + 3 * math.exp(-pace * step / 400) + 0.05 * rng.random()}
        for step in range(10, 401, 10)
    ]
    records[7]["loss"] = math.nan
    for step in (100, 200, 300, 400):
        records.append({"step": step, "eval_loss": 0.3 + 3 * math.exp(-pace * step / 400)})
    return records


def _history(rng: random.Random, layers: int, choices: int) -> list[dict[str, Any]]:
    records = []
    for i in range(choices):
        scores = [rng.uniform(0.2, 1) + (layer in (0, layers - 1)) for layer in range(layers)]
        explore = rng.random() < 0.2
        best = sorted(range(layers), key=lambda j: -scores[j])[: layers // 2]
        selected = rng.sample(range(layers), layers // 2) if explore else best
        records.append(
            {
                "step": 40 * (i + 1),
                "mode": "explore" if explore else "exploit",
                "scores": scores,
                "selected": sorted(selected),
            }
        )
    return records


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
