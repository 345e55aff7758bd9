"""`rosa demo`: fine-tune a small model with RoSA on the toy tasks; scores before and after."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rosa.assets import ASSETS
from rosa.cli.main import EXIT_INTERRUPTED
from rosa.cli.parser import Parser

if TYPE_CHECKING:
    from rosa.evaluate.options import EvaluationOptions

TASKS = ["toy"]
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
    from rosa.common.tables.render import print_table
    from rosa.compare.base_model import base_table
    from rosa.evaluate.options import EvaluationOptions
    from rosa.evaluate.run import run_evaluation
    from rosa.train.run import train

    start = time.perf_counter()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    folder = free_folder(Path(args.output_dir))
    recipe = load_recipe(args.recipe, "--output_dir", str(folder))
    options = EvaluationOptions(limit=args.limit)
    with TemporaryDirectory() as base:
        console.print(f"1. the base model {recipe.model} answers questions of a small world")
        before = run_evaluation(recipe.model, TASKS, options, out=base, progress=True)
        console.print("2. fine-tuning with RoSA")
        result = train(recipe, log=console.print)
        if not (result.finished and result.costs):
            console.print(
                f"stopped after step {result.steps} of {result.total_steps}; resume with\n"
                f"rosa train {folder / 'recipe.yaml'} --resume"
            )
            return EXIT_INTERRUPTED
        console.print("3. the same questions again")
        out = folder / "evaluation"
        after = run_evaluation(folder, TASKS, options, out=out, progress=True)
        for line in answers_before_and_after(Path(base), out, options):
            console.print(line)
        print_table(base_table(base, out), console)
    assert before
    assert after
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


def answers_before_and_after(base: Path, out: Path, options: EvaluationOptions) -> Iterator[str]:
    """Two questions of the first task and one of the next, with both models' answers."""
    from rosa.evaluate.folder import EvaluationFolder
    from rosa.evaluate.requests import build_requests

    asked = [(r.task.name, e) for r in build_requests(TASKS, options) for e in r.examples[:2]]
    for task, example in asked[:3]:
        yield f"\n{' '.join(example.question.instruction.split())}"
        for model, folder in (("base", base), ("RoSA", out)):
            record = EvaluationFolder(folder).read_answers(task)[example.index]
            text = " ".join(record["response"].split())[:80] or "(nothing)"
            yield f"  {model}: {text}   [{'right' if record['correct'] else 'wrong'}]"
    yield ""


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
