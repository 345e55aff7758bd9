"""`rosa demo`: fine-tune the embedded toy model with RoSA and score it before and after."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.cli.main import EXIT_INTERRUPTED
from rosa.cli.parser import Parser

if TYPE_CHECKING:
    from rosa.evaluate.results import Results

RECIPE = Path(__file__).parent.parent / "assets" / "recipes" / "demo.yaml"


def build_parser() -> Parser:
    """The options of `rosa demo`."""
    parser = Parser(
        prog="rosa demo",
        description="Fine-tune the embedded toy model with RoSA and score it before and after; "
        "under five minutes on two CPU cores.",
    )
    parser.add_argument("--output_dir", default="runs/demo", help="a number is added if taken")
    parser.add_argument("--limit", type=int, help="score on a seeded sample of N questions a task")
    return parser


def run(args: Any) -> int:
    """Score the base, train, score again, and print the two side by side."""
    from rich.console import Console

    from rosa.cli.recipe_parser import load_recipe
    from rosa.common.environment import describe_environment
    from rosa.evaluate.run import evaluate, prepare
    from rosa.models import loading as models
    from rosa.train.run import train

    start = time.perf_counter()
    console = Console(markup=False, highlight=False, soft_wrap=True)
    folder = free_folder(Path(args.output_dir))
    recipe = load_recipe(str(RECIPE), "--output_dir", str(folder))
    work = prepare(["toy"], limit=args.limit)

    def score(name: str) -> Results:
        loaded = models.load(name)
        return evaluate(loaded.model, loaded.tokenizer, work, limit=args.limit, progress=True)

    console.print(f"1. the base model {recipe.model}, a toy that knows a small world of its own")
    before = score(recipe.model)
    console.print("2. fine-tuning with RoSA")
    result = train(recipe, log=console.print)
    if not result.finished:
        console.print(
            f"stopped after step {result.steps} of {result.total_steps}; go on with\n"
            f"rosa train {folder / 'recipe.yaml'} --resume"
        )
        return EXIT_INTERRUPTED
    console.print("3. the same questions again")
    after = score(str(folder))
    console.print(side_by_side(before, after))
    seconds = round(time.perf_counter() - start)
    record = {
        "trainable": result.trainable,
        "seconds": seconds,
        "before": before.to_json(),
        "after": after.to_json(),
        **describe_environment(),
    }
    (folder / "demo.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    console.print(f"{seconds} seconds in all; the figures are in {folder / 'demo.json'}")
    for picture in ("loss.png", "layers.png"):
        if (folder / picture).is_file():
            console.print(f"picture: {folder / picture}")
    return 0


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-2`, `wanted-3`, ... that does not exist."""
    folder, number = wanted, 1
    while folder.exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def side_by_side(before: Results, after: Results) -> Any:
    """Accuracy per task before and after."""
    from rich.table import Table

    table = Table(title="held-out questions, before and after RoSA")
    for column in ("task", "questions", "base %", "RoSA %"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for old, new in zip(before.scores, after.scores, strict=True):
        table.add_row(old.title, str(old.scored), f"{old.accuracy:.1f}", f"{new.accuracy:.1f}")
    return table
