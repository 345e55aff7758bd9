"""`rosa train RECIPE.yaml [--key value] [--resume]`: fine-tune as a recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rosa.cli.main import EXIT_INTERRUPTED
from rosa.cli.recipe_parser import RecipeParser

if TYPE_CHECKING:
    from rosa.train.recipe import Recipe

FLAGS = {
    "resume": "resume from the last checkpoint in the recipe's output_dir",
    "dry_run": "print the resolved recipe and exit",
}


def build_parser() -> RecipeParser:
    return RecipeParser("rosa train", FLAGS)


def run(args: tuple[Recipe, dict[str, bool]]) -> int:
    from rich.console import Console

    from rosa.common.distributed import is_main_process, stop_with_launcher
    from rosa.train.checks import check_run
    from rosa.train.recipe import dump_recipe

    recipe, flags = args
    if is_main_process() and not flags["dry_run"]:
        check_run(recipe, resume=flags["resume"])
    # Only the main process prints.
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
            "rerun with --resume to continue"
        )
        return EXIT_INTERRUPTED
    console.print(f"adapter, metrics and plots are in {result.folder}")
    return 0
