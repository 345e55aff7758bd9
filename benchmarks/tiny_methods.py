"""RoSA beside LoRA on the embedded toy model, at the same steps and data.

    python benchmarks/tiny_methods.py            # about ten minutes on two cores

Every contender is `recipes/demo.yaml` of the package with some keys changed, trained and scored as
`rosa demo` does. Writes docs/results/tiny_methods.json; `python docs/generate.py` puts its table
into docs/tiny.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rosa.cli.demo import RECIPE
from rosa.cli.recipe import load_recipe
from rosa.study import models
from rosa.study.environment import describe_environment
from rosa.study.evaluate import evaluate, prepare
from rosa.study.methods import load_method
from rosa.study.recipe import Recipe
from rosa.study.train import train

OUT = Path(__file__).parent.parent / "docs" / "results" / "tiny_methods.json"
PAPER = {"r": 128, "alpha": 0.1, "r_low": 0.25}


def contenders(demo: Recipe) -> dict[str, Recipe]:
    """What is compared, by the name that the table gives it."""
    lora = {"method": "lora", "adapter": load_method("lora").kwargs, "dls": None}
    return {
        "RoSA, as in the demo": demo,
        "RoSA, every layer at every step (no DLS)": replace(demo, dls=None),
        "RoSA, the paper's adapter and learning rate": replace(
            demo, adapter=PAPER, learning_rate=1e-3
        ),
        "LoRA r 16 on all linears, lr 1e-3": replace(demo, **lora, learning_rate=1e-3),
        "LoRA r 16 on all linears, lr 5e-3": replace(demo, **lora),
    }


def measure(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Train, score both toy tasks, and say what it cost."""
    start = time.perf_counter()
    result = train(replace(recipe, output_dir=str(folder), report_to=[]), say=str)
    seconds = time.perf_counter() - start
    loaded = models.load(str(folder))
    scores = evaluate(loaded.model, loaded.tokenizer, prepare(["toy"]), batch_size=64).scores
    return {
        "trainable": result.trainable,
        "steps": result.steps,
        "seconds": round(seconds),
        "accuracy": {score.name: score.accuracy for score in scores},
    }


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, recipe) in enumerate(contenders(load_recipe(str(RECIPE))).items()):
            found[name] = measure(recipe, Path(folder) / str(i))
            print(name, found[name], flush=True)
    record = {"seed": load_recipe(str(RECIPE)).seed, "methods": found, **describe_environment()}
    OUT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
