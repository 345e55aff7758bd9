"""What can be wrong with a run and is found before PyTorch is imported."""

from __future__ import annotations

from pathlib import Path

from rosa.data.sources import is_local, load_located_rows
from rosa.models.loading import check_model_files
from rosa.train.recipe import Recipe, check_recipe
from rosa.train.run_folder import RunFolder


def check_run(recipe: Recipe, *, resume: bool = False) -> None:
    """Checks values, the output folder, the model's files and local rows, in this order.

    Raises:
        RosaError: one of them is wrong; nothing has been written.
    """
    check_recipe(recipe)
    RunFolder(Path(recipe.output_dir)).check(recipe, resume)
    check_model_files(recipe.model)
    local = [source for source in recipe.data_sources if is_local(source)]
    load_located_rows(local, recipe.columns)
