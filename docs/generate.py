"""Writes docs/recipe.md from the recipe's own definition, and the README's demo table from
docs/results/demo.json (which `make demo-record` writes); a test checks that both are up to date.

python docs/generate.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

from rosa import DlsConfig, RosaConfig
from rosa.study.recipe import Recipe

PAGE = Path(__file__).parent / "recipe.md"
README = Path(__file__).parent.parent / "README.md"
DEMO = Path(__file__).parent / "results" / "demo.json"
DEMO_MARKS = ("<!-- demo-table: written by docs/generate.py -->", "<!-- /demo-table -->")
HEAD = """# Recipe keys

<!-- written by docs/generate.py; do not edit -->

A recipe is a YAML file of the keys below; `rosa train RECIPE.yaml --key value` overrides one. A
path in it is relative to the folder you run the command in. The resolved recipe is printed and kept
as `recipe.yaml` in the run's folder.

```yaml
model: rosa-tiny
data: tiny-sums
output_dir: runs/example
adapter: {r: 32}
dls: {interval: 20}     # dls: null trains every layer at every step
```
"""
DATA = """
## Data

A local `.json` or `.jsonl` file, a built-in toy task (`tiny-sums`, `tiny-choice`), or a hub id
(its `train` split). A row has one of three forms:

| form | fields | the loss is on |
|---|---|---|
| LLM-Adapters | `instruction`, `input` (may be empty), `output` | the output |
| pair | `prompt`, `completion` | the completion |
| chat | `messages`: a list of `{role, content}` | every assistant turn |

The first is set in the suite's instruction template. `train_on_prompt: true` puts the loss on the
prompt too, as the published suite does. Rows longer than `max_length` tokens are cut, and dropped
where nothing of the response would be left; the run prints how many.

## What a run leaves

| file | |
|---|---|
| `adapter_config.json`, `adapter_model.safetensors` | [the adapter](adapter-format.md) |
| `recipe.yaml` | the resolved recipe |
| `metrics.jsonl` | a line per log: step, loss, learning rate, gradient norm, tokens per second |
| `dls_history.jsonl` | a line per choice of layers: step, mode, scores, selected |
| `loss.png`, `layers.png` | the same, drawn |
| `README.md` | the model card |
| `checkpoint-N/` | what `--resume` needs; the newest and the best are kept |

Ctrl-C (or SIGTERM) ends the run after the step it is in, with a checkpoint; the same command with
`--resume` goes on and ends with the same adapter as an uninterrupted run (float32, CPU, one
process). A folder that holds another run is refused. A loss that is not a finite number stops the
run and leaves the last good checkpoint.
"""


def descriptions(cls: type) -> dict[str, str]:
    """What each field means: its metadata's `help`, or its entry in the docstring's `Args:`."""
    section = re.search(r"^Args:\n(.*?)(?:^\S|\Z)", inspect.getdoc(cls) or "", re.S | re.M)
    text = section[1] if section else ""
    entries = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", text, re.S | re.M)
    helps = {f.name: f.metadata["help"] for f in dataclasses.fields(cls) if "help" in f.metadata}
    own = {} if cls.__base__ is object else {f.name for f in dataclasses.fields(cls.__base__)}
    said = {**dict(entries), **helps}
    return {name: " ".join(words.split()) for name, words in said.items() if name not in own}


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value) or value == {}:
        return "see below"
    return (
        "`null`"
        if value is None
        else f"`{str(value).lower() if value in (True, False) else value}`"
    )


def table(cls: type, prefix: str = "") -> str:
    """A row per documented field: key, default, meaning."""
    said = descriptions(cls)
    rows = [
        f"| `{prefix}{field.name}` | {default_of(field)} | {said[field.name]} |"
        for field in dataclasses.fields(cls)
        if field.name in said and not (prefix and field.name == "dls")
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Keys\n",
        table(Recipe),
        "\n## Under `dls`\n",
        table(DlsConfig, "dls."),
        "\n## Under `adapter`, for `method: rosa`\n",
        table(RosaConfig, "adapter."),
        "\nAnother method's keys are those of its PEFT config; "
        "`rosa train RECIPE.yaml --method lora --help` lists them.",
        DATA,
    ]
    return "\n".join(parts)


def demo_table() -> str:
    """What the demo found: accuracy per toy task before and after, time and machine."""
    record = json.loads(DEMO.read_text(encoding="utf-8"))
    lines = ["| held-out questions of | base model | after RoSA |", "|---|---:|---:|"]
    for old, new in zip(record["before"]["tasks"], record["after"]["tasks"], strict=True):
        name = f"{old['title']} ({old['scored']})"
        lines.append(f"| {name} | {old['accuracy']:.1f} % | {new['accuracy']:.1f} % |")
    where = f"{record['cores']} cores of an {record['machine']}"
    cost = f"{record['trainable']:,} trainable parameters, {record['seconds']} seconds in all"
    return "\n".join([*lines, "", f"{cost}, on {where} (commit {record['commit']})."])


def readme() -> str:
    """The README with a fresh demo table."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(DEMO_MARKS[0])
    after = rest.split(DEMO_MARKS[1])[1]
    return f"{before}{DEMO_MARKS[0]}\n{demo_table()}\n{DEMO_MARKS[1]}{after}"


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
