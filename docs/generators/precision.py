"""The tables on precision, from docs/results/precision.json (`benchmarks/precision.py`)."""

from __future__ import annotations

from docs.generators.blocks import measured_on, read_json


def logits_table() -> str:
    """Errors against float32 of base and adapted model, by precision."""
    models = read_json("precision.json")["logits"]
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


def training_table() -> str:
    """Where trainings of the toy model end, by precision; mean and range over seeds."""
    record = read_json("precision.json")
    settings = record["settings"]
    head = "| trained in | accuracy | final loss | norm weights that moved | by (median) |"
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
        f"parentheses), {settings['questions']} held-out questions, scored in the training "
        f"precision; {measured_on(record)}, by `python -m benchmarks.precision --steps "
        f"{settings['steps']} --seeds {settings['seeds']} --questions {settings['questions']}`."
    )
    return "\n".join([*lines, "", said])
