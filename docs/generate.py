"""Writes the generated parts of the docs; a test checks that they are up to date.

docs/recipe.md comes from the recipe's own definition, the README's table from
docs/results/demo.json (`make demo-record`), those of docs/tiny_study.md from docs/results/tiny
(`make tiny-study`), those of docs/precision.md from docs/results/precision.json
(`benchmarks/precision.py`).

python docs/generate.py
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

from generate_methods import methods_table, refused_table
from generate_scale import check_table, cost_table, memory_table

from rosa import DlsConfig, RosaConfig
from rosa.train.recipe import MethodsOwn, Recipe

PAGE = Path(__file__).parent / "recipe.md"
TINY_STUDY = Path(__file__).parent / "tiny_study.md"
METHODS = Path(__file__).parent / "methods.md"
README = Path(__file__).parent.parent / "README.md"
PRECISION = Path(__file__).parent / "precision.md"
SCALE = Path(__file__).parent / "scale.md"
RESULTS = Path(__file__).parent / "results"
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

## Tokenised rows are kept

The token ids of a training or validation set of 1,000 rows or more are kept, and a later run with
the same rows reads them instead of tokenising again. Smaller sets are tokenised each time, which is
as quick, and so are those of a tokenizer without the fast backend.

- **Where:** in the folder `ROSA_CACHE`, else in `rosa` inside `HF_DATASETS_CACHE`, else in
  `~/.cache/rosa`; a `.safetensors` file per set, 8 bytes a token. Where nothing can be written,
  nothing is kept, and nothing else is different.
- **What a file belongs to:** its name is a hash of the rows in their order, after `limit` and
  `validation` have taken theirs (so `seed` counts); of the tokenizer with its special tokens and
  chat template (and of the date, where a template may write it); of `max_length`, `overlong` and
  `train_on_prompt`; and of the versions of Transformers and tokenizers. Paths are no part of it.
- **When it is made again:** where any of these changed, the file is missing, or its checksum is not
  that of its content. Files of earlier settings stay and are never read.
- **Clearing it:** delete the folder, at any time; nothing in it is needed by a run or a checkpoint.
- **How many tokenise:** each process that trains, for itself. Where a launcher starts several, or
  `rosa compare` several runs, and the file is not there yet, all of them tokenise the same rows at
  the same time, and each puts a whole file in its place. Inside a process the tokenizer takes 1,000
  rows at a time in threads, as many as there are cores (`RAYON_NUM_THREADS` says otherwise,
  `TOKENIZERS_PARALLELISM=false` is one).

## What a run leaves

| file | |
|---|---|
| `adapter_config.json`, `adapter_model.safetensors` | [the adapter](adapter-format.md) |
| `recipe.yaml` | the resolved recipe |
| `metrics.jsonl` | a line per log: step, loss, learning rate, gradient norm, tokens per second |
| `dls_history.jsonl` | a line per choice of layers: step, mode, scores, selected |
| `loss.png`, `layers.png` | the same, drawn; [`rosa plot`](dls.md#seeing-it) draws the second |
| `costs.json` | [what it cost](costs.md): time, memory, tokens, energy, size |
| `README.md` | the model card |
| `checkpoint-N/` | what `--resume` needs; the newest and the best are kept |

Ctrl-C (or SIGTERM) ends the run after the step it is in, with a checkpoint; the same command with
`--resume` goes on and ends with the same adapter as an uninterrupted run (float32, CPU, one
process). A folder that holds another run is refused. A loss that is not a finite number stops the
run and leaves the last good checkpoint; start again in another folder. One run at a time works
in a folder. A second Ctrl-C ends the run at once, and what came after the last checkpoint is lost.
A checkpoint with a damaged file is passed over for the one before. A kill, a full disk and other
[faults](faults.md) cost what came after the last checkpoint and nothing else.
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
    if value == {}:
        return "see below"
    if isinstance(value, MethodsOwn):
        return str(value)
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
    record = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    lines = ["| held-out questions of | base model | after RoSA |", "|---|---:|---:|"]
    for old, new in zip(record["before"]["tasks"], record["after"]["tasks"], strict=True):
        name = f"{old['title']} ({old['scored']})"
        lines.append(f"| {name} | {old['accuracy']:.1f} % | {new['accuracy']:.1f} % |")
    cost = f"{record['trainable']:,} trainable parameters, {record['seconds']} seconds in all"
    return "\n".join([*lines, "", f"{cost}; {measured_on(record)}."])


def measured_on(record: dict[str, Any]) -> str:
    """Machine, versions and commit in a few words."""
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers"))
    return (
        f"measured on {record['cores']} cores of an {record['machine']} with {versions} "
        f"(commit {record['commit']})"
    )


def tiny_scores() -> str:
    """The tiny study's table of scores with its footnotes, and where it was measured."""
    table = (RESULTS / "tiny" / "toy.md").read_text(encoding="utf-8").strip()
    record = json.loads((RESULTS / "tiny" / "results.json").read_text(encoding="utf-8"))
    place = measured_on(record["environment"])
    return f"{table}\n- {place[0].upper()}{place[1:]}; one thread a run, two runs at a time."


def tiny_rates() -> str:
    """Validation loss of each method by learning rate, the chosen one bold."""
    record = json.loads((RESULTS / "tiny" / "results.json").read_text(encoding="utf-8"))
    titles = {run["method"]: run["title"] for run in record["runs"]}
    rates = list(record["tuning"][0]["losses"])
    lines = [f"| method | {' | '.join(rates)} |", "|---|" + "---:|" * len(rates)]
    for row in record["tuning"]:
        cells = []
        for rate, loss in row["losses"].items():
            text = "diverged" if loss is None else f"{loss:.3f}"
            cells.append(f"**{text}**" if float(rate) == row["chosen"] else text)
        lines.append(f"| {titles[row['method']]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text: str, name: str, content: str) -> str:
    """The text with fresh content between its marks for `name`."""
    begin, end = f"<!-- {name}: written by docs/generate.py -->", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def tiny_study() -> str:
    """The page of the tiny study with its tables."""
    text = filled(TINY_STUDY.read_text(encoding="utf-8"), "scores", tiny_scores())
    questions = (RESULTS / "tiny" / "questions.md").read_text(encoding="utf-8").strip()
    return filled(filled(text, "questions", questions), "rates", tiny_rates())


def precision_logits() -> str:
    """Errors against float32 of base and adapted model, by precision."""
    record = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
    models = record["logits"]
    lines = [
        f"| precision | {' | '.join(models)} | same token, rosa-tiny |",
        "|---|" + "---:|" * (len(models) + 1),
    ]
    for name, tiny in models["rosa-tiny"].items():
        pairs = [
            [100 * models[model][name][w]["error"] for w in ("base", "rosa")] for model in models
        ]
        cells = [f"{base:.2g} % → {rosa:.2g} %" for base, rosa in pairs]
        same = " → ".join(f"{100 * tiny[what]['same_token']:.1f} %" for what in ("base", "rosa"))
        lines.append(f"| {name} | {' | '.join(cells)} | {same} |")
    return "\n".join(lines)


def precision_training() -> str:
    """Where trainings of the toy model end, by precision; mean and range over seeds."""
    record = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
    settings = record["settings"]
    head = "| trained in | accuracy | loss at the end | norm weights that moved | by (median) |"
    lines = [head, "|---|---:|---:|---:|---:|"]
    for name, runs in record["training"].items():

        def mean(key: str, runs: list[dict[str, float]] = runs) -> float:
            return sum(run[key] for run in runs) / len(runs)

        each = ", ".join(f"{run['accuracy']:.0f}" for run in runs)
        lines.append(
            f"| {name} | {mean('accuracy'):.1f} % ({each}) | {mean('loss'):.3f} | "
            f"{100 * mean('norms_moved'):.1f} % | {mean('norms_median'):.3f} |"
        )
    said = (
        f"rosa-tiny on {settings['task']}: {settings['steps']} steps of {settings['batch']} rows "
        f"at a learning rate of {settings['learning_rate']}, {settings['seeds']} seeds (in "
        f"brackets), {settings['questions']} held-out questions, asked in the precision of the "
        f"training; {measured_on(record)}, by `python -m benchmarks.precision --steps "
        f"{settings['steps']} --seeds {settings['seeds']} --questions {settings['questions']}`."
    )
    return "\n".join([*lines, "", said])


def precision_page(text: str) -> str:
    """The page of precisions with its tables."""
    text = filled(text, "precision-logits", precision_logits())
    return filled(text, "precision-training", precision_training())


def methods_page(text: str) -> str:
    """The page of methods with its tables."""
    text = filled(text, "paper-methods", methods_table(["baseline", "ours"]))
    text = filled(text, "variants", methods_table(["variant"]))
    return filled(text, "refused", refused_table())


def scale_page(text: str) -> str:
    """The page of formulas with its tables."""
    text = filled(text, "scale-costs", cost_table())
    text = filled(text, "scale-memory", memory_table())
    return filled(text, "scale-check", check_table())


def pages() -> dict[Path, str]:
    """Every page with generated parts, as it should be."""
    return {
        PAGE: page(),
        README: filled(README.read_text(encoding="utf-8"), "demo-table", demo_table()),
        TINY_STUDY: tiny_study(),
        METHODS: methods_page(METHODS.read_text(encoding="utf-8")),
        SCALE: scale_page(SCALE.read_text(encoding="utf-8")),
        PRECISION: precision_page(PRECISION.read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
