"""The model card of a run: data, loss, how to load it, recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rosa.models.loading import is_hub_id
from rosa.train.recipe import Recipe, dump_recipe

_TEMPLATE = """---
{base}library_name: peft
tags: [{tags}]
---

# {method} adapter of {model}

{trained} {data} with `rosa train`: {steps} optimizer steps, last training loss {loss}{best}.

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


def write_model_card(
    folder: Path, recipe: Recipe, steps: int, loss: float | None, log: list[dict[str, Any]]
) -> None:
    """README.md in the run's folder, in the format of the Hugging Face Hub."""
    best = min((entry["eval_loss"] for entry in log if "eval_loss" in entry), default=None)
    source = recipe.adapter_from
    text = _TEMPLATE.format(
        model=recipe.model,
        # The hub accepts ids alone here, and would take a path for somebody's id.
        base=f"base_model: {recipe.model}\n" if is_hub_id(recipe.model) else "",
        method=recipe.method,
        tags=", ".join(dict.fromkeys(["rosa-peft", recipe.method])),
        trained=f"The adapter {source}, trained further on" if source else "Trained on",
        data=", ".join(recipe.data_sources),
        steps=steps,
        loss="unknown" if loss is None else f"{loss:.4f}",
        best="" if best is None else f", best validation loss {best:.4f}",
        folder=Path(recipe.output_dir).as_posix(),
        layers="![chosen layers](layers.png)\n" if (folder / "layers.png").is_file() else "",
        recipe=dump_recipe(recipe),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
