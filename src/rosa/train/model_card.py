"""The model card of a run: how it was made, how to load it, how it went."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosa.train.recipe import Recipe, dump_recipe

if TYPE_CHECKING:
    from rosa.train.run import TrainResult

_TEMPLATE = """---
base_model: {model}
library_name: peft
tags: [{tags}]
---

# {method} adapter of {model}

Trained on {data} with `rosa train`: {steps} optimizer steps, last training loss {loss}{best}.

```python
import rosa  # registers RoSA with PEFT
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{model}")
model = PeftModel.from_pretrained(model, "{folder}")
```

Score it: `rosa evaluate {folder} --tasks commonsense`

![loss](loss.png)
{layers}
## Recipe

```yaml
{recipe}```
"""


def write_model_card(recipe: Recipe, result: TrainResult, log: list[dict[str, Any]]) -> None:
    """README.md in the run's folder, in the form that the hub reads."""
    best = min((entry["eval_loss"] for entry in log if "eval_loss" in entry), default=None)
    layers = "![chosen layers](layers.png)\n" if (result.folder / "layers.png").is_file() else ""
    text = _TEMPLATE.format(
        model=recipe.model,
        method=recipe.method,
        tags=", ".join(dict.fromkeys(["rosa-peft", recipe.method])),
        data=", ".join(recipe.data_sources),
        steps=result.steps,
        loss="unknown" if result.loss is None else f"{result.loss:.4f}",
        best="" if best is None else f", best validation loss {best:.4f}",
        folder=Path(recipe.output_dir).as_posix(),
        layers=layers,
        recipe=dump_recipe(recipe),
    )
    (result.folder / "README.md").write_text(text, encoding="utf-8")
