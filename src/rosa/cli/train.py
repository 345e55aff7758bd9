"""`rosa train RECIPE.yaml [--key value] [--resume]`: fine-tune as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rosa.cli.main import EXIT_INTERRUPTED
from rosa.cli.recipe_parser import RecipeParser

if TYPE_CHECKING:
    from rosa.train.recipe import Recipe

FLAGS = {
    "resume": "go on from the last checkpoint of this run's output_dir",
    "dry_run": "print the resolved recipe and stop",
}


def build_parser() -> RecipeParser:
    return RecipeParser("rosa train", FLAGS)


def run(args: tuple[Recipe, dict[str, bool]]) -> int:
    from rich.console import Console

    from rosa.common.distributed import is_main_process, stop_with_launcher
    from rosa.train.recipe import dump_recipe

    recipe, flags = args
    # Of several processes the first one speaks.
    console = Console(markup=False, highlight=False, soft_wrap=True, quiet=not is_main_process())
    console.print(dump_recipe(recipe), end="")
    if flags["dry_run"]:
        return 0
    stop_with_launcher()
    from rosa.train.run import train

    result = train(recipe, resume=flags["resume"], log=console.print)
    if not result.finished:
        console.print(
            f"stopped after step {result.steps} of {result.total_steps}, saved; "
            "the same command with --resume goes on"
        )
        return EXIT_INTERRUPTED
    console.print(f"adapter, metrics and pictures are in {result.folder}")
    return 0
