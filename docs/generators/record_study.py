"""Keeps a study's results beside the docs, and answers questions about pairs of its methods.

    python -m docs.generators.record_study runs/tiny-study docs/results/tiny  # make tiny-study

Copies results.json, the grid, the tables and the pictures, and writes questions.json and
questions.md: the difference of two methods with a test over seeds and an interval over examples.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from rosa.compare.results import StudyResults
from rosa.compare.significance import format_p_value
from rosa.report.tables.differences import Difference, differences

KEPT = ["results.json", "grid.yaml", "overlap.json", "tables/*", "figures/*"]
QUESTIONS = [  # question, a method, the method it is compared with
    ("RoSA against LoRA, the paper's settings", "rosa", "lora"),
    ("RoSA against LoRA, equal budgets", "rosa-41k", "lora-41k"),
    ("RoAE against LoRA on q and k: alone", "roae-alone-41k", "lora-qk-41k"),
    ("... with the norms trained", "roae-norms-41k", "lora-qk-norms-41k"),
    ("... with norms and DLS", "rosa-41k", "lora-qk-norms-dls-41k"),
    ("Chosen layers against all layers", "rosa", "roae_only"),
    ("... for LoRA", "lora-dls", "lora"),
    ("Chosen by score against chosen at random", "rosa", "rosa-random"),
    ("Chosen by score against the upper half, fixed", "rosa", "rosa-upper"),
    ("... against the lower half, fixed", "rosa", "rosa-lower"),
    ("k_ratio 0.25 against 0.5", "rosa-k-0.25", "rosa"),
    ("k_ratio 0.75 against 0.5", "rosa-k-0.75", "rosa"),
    ("Before against after the rotation", "rosa-pre", "rosa"),
    ("r_low 0.5 against 0.25", "rosa_low_0.5", "rosa"),
    ("r_low 1 against 0.25", "rosa-low-1.0", "rosa"),
    ("alpha 1 against 0.1", "rosa-alpha-1", "rosa"),
    ("All norms alone against norms and RoAE, no DLS", "norms-alone", "roae_only"),
    ("RoSA without trained norms against with", "rosa-no-norms", "rosa"),
]


def main(study_folder: str, out: str) -> None:
    """Copy, compare and write."""
    study, folder = StudyResults.load(study_folder), Path(out)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for pattern in KEPT:
        for file in sorted(study.folder.glob(pattern)):
            shutil.copy(file, folder / file.name)
    found = [(question, pair(study, ours, theirs)) for question, ours, theirs in QUESTIONS]
    records = [{"question": question, **asdict(d)} for question, d in found]
    (folder / "questions.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    (folder / "questions.md").write_text(table(found), encoding="utf-8")


def pair(study: StudyResults, method: str, baseline: str) -> Difference:
    """One method against another, on the study's first model, training set and suite."""
    run = study.select(method=method)[0]
    suite = run.scores[0].suite
    every = differences(study, run.model, run.train_set, suite, baseline=baseline)
    return next(d for d in every if d.method == method)


def table(found: list[tuple[str, Difference]]) -> str:
    """The questions as a Markdown table."""
    lines = [
        "| question | micro avg. % | difference | 95 % interval | p, seeds | p, examples |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for question, d in found:
        means = f"{d.ours.mean:.1f} vs. {d.theirs.mean:.1f}"
        interval = "–"
        if d.interval.low is not None and d.interval.high is not None:
            interval = f"{d.interval.low:+.1f} to {d.interval.high:+.1f}"
        tests = f"{format_p_value(d.t.p)} | {format_p_value(d.mcnemar.p)}"
        lines.append(f"| {question} | {means} | {d.difference:+.1f} | {interval} | {tests} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
