"""`rosa demo`: fine-tune a small model with RoSA on the toy tasks; scores before and after."""

from __future__ import annotations

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rosa.assets import ASSETS
from rosa.cli.main import EXIT_INTERRUPTED
from rosa.cli.parser import Parser
from rosa.common.files import read_jsonl

RECIPE = ASSETS / "recipes" / "demo.yaml"


def build_parser() -> Parser:
    """The options of `rosa demo`."""
    parser = Parser(
        prog="rosa demo",
        description="Fine-tune the embedded toy model with RoSA and score it before and after; "
        "under five minutes on two CPU cores.",
    )
    parser.add_argument("--recipe", default=str(RECIPE), help="train another model on the tasks")
    parser.add_argument("--output_dir", default="runs/demo", help="a number is added if taken")
    parser.add_argument("--limit", type=int, help="score a seeded sample of N questions per task")
    return parser


def run(args: Any) -> int:
    """Score the base model, train, score again, and print both."""
    from rich.console import Console

    from rosa.cli.recipe_parser import load_recipe
    from rosa.common.environment import describe_environment
    from rosa.common.tables.model import Block, Cell, Column, Row, Table
    from rosa.common.tables.render import print_table
    from rosa.evaluate.options import EvaluationOptions
    from rosa.evaluate.run import run_evaluation
    from rosa.train.run import train

    start = time.perf_counter()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    folder = free_folder(Path(args.output_dir))
    recipe = load_recipe(args.recipe, "--output_dir", str(folder))
    options = EvaluationOptions(limit=args.limit)
    console.print(f"1. the base model {recipe.model} answers questions of a small world")
    with TemporaryDirectory() as base:
        before = run_evaluation(recipe.model, ["toy"], options, out=base, progress=True)
        first = read_answers(Path(base))
    console.print("2. fine-tuning with RoSA")
    result = train(recipe, log=console.print)
    if not (result.finished and result.costs):
        console.print(
            f"stopped after step {result.steps} of {result.total_steps}; resume with\n"
            f"rosa train {folder / 'recipe.yaml'} --resume"
        )
        return EXIT_INTERRUPTED
    console.print("3. the same questions again")
    after = run_evaluation(folder, ["toy"], options, out=folder / "evaluation", progress=True)
    examples = list(zip(first, read_answers(folder / "evaluation"), strict=True))[
        :: max(1, len(first) // 3)
    ]
    for old, new in examples[:3]:
        console.print(f"\n{question(old)}\n  base: {shown(old)}\n  RoSA: {shown(new)}")
    assert before
    assert after
    columns = (Column("questions", 0), Column("base"), Column("RoSA"))
    rows = [
        Row(old.title, (Cell(old.scored), Cell(old.accuracy), Cell(new.accuracy)))
        for old, new in zip(before.scores, after.scores, strict=True)
    ]
    title = "Accuracy on held-out questions in percent, before and after RoSA"
    print_table(Table("demo", title, "task", columns, (Block("", tuple(rows)),)), console)
    seconds = round(time.perf_counter() - start)
    record = {
        "model": recipe.model,
        "trainable": result.trainable,
        "seconds": seconds,
        "tokens_per_second": result.costs.tokens_per_second,
        "before": before.to_json(),
        "after": after.to_json(),
        **describe_environment(),
    }
    (folder / "demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    speed = f"{result.costs.tokens_per_second:,.0f} tokens per second of training"
    console.print(f"{seconds} seconds in all, {speed}; the figures are in {folder / 'demo.json'}")
    for picture in ("loss.png", "layers.png"):
        if (folder / picture).is_file():
            console.print(f"picture: {folder / picture}")
    return 0


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The recorded answers of an evaluation's tasks, in the order of their names."""
    return [record for file in sorted(folder.glob("*.jsonl")) for record in read_jsonl(file)]


def question(record: dict[str, Any]) -> str:
    """The instruction within a recorded prompt, on one line."""
    return " ".join(record["prompt"].split("### Instruction:")[-1].split("### Resp")[0].split())


def shown(record: dict[str, Any]) -> str:
    """The first line of a response, and whether it is right."""
    text = (record["response"].strip() or "(nothing)").splitlines()[0][:80]
    return f"{text}   [{'right' if record['correct'] else 'wrong'}]"


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
