"""Tables from docs/results/real_cpu.json and real_norms.json: speed and learning of real models."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from benchmarks.pages import table
from benchmarks.real import TRAINING
from docs.generators.blocks import measured_on, read_json

STARTUP = {
    "help": "`rosa --help`",
    "train --help": "`rosa train --help`",
    "params": "`rosa params MODEL`, all methods",
    "mistyped key": "`rosa train`, a mistyped key",
    "missing file": "`rosa train`, a missing recipe",
    "missing model": "`rosa evaluate`, a missing model",
}


def _median(figures: dict[str, Any], what: str) -> float:
    return figures[what]["median"]


def training_table() -> str:
    """Of each model and precision: real tokens per second of every contender."""
    blocks = []
    for model, parts in read_json("real_cpu.json").items():
        for part, found in parts.items():
            if not part.startswith("training "):
                continue
            of = found["contenders"]
            plain = _median(of["trl-lora"], "tokens_per_second")
            rows = [
                [
                    TRAINING[name],
                    f"{_median(figures, 'tokens_per_second'):.0f}",
                    f"{_median(figures, 'tokens_per_second') / plain:.1f}",
                    f"{_relative_to_floor(of, name):.2f}",
                    f"{_median(figures, 'first_step_seconds'):.0f} s",
                ]
                for name, figures in of.items()
            ]
            rounds = _of_rounds(len(of["trl-lora"]["tokens_per_second"]["all"]))
            head = [
                f"{model}, {part.split()[1]}",
                "tokens/s",
                "× plain TRL",
                "time per token / floor",
                "to the first step",
            ]
            where = measured_on(found["environment"])
            note = f"{rounds}, batches of {found['batch']} rows; {where}."
            blocks.append(f"{table(head, rows)}\n\n{note}")
    return "\n\n".join(blocks)


def _of_rounds(rounds: int) -> str:
    return f"Median of {rounds} rounds" if rounds > 1 else "One round"


def padding_table() -> str:
    """Of each training set: the share of padding in what a step computes, by rows in a batch."""
    parts = read_json("real_cpu.json")["SmolLM2-135M-Instruct"]
    sets = [found for part, found in parts.items() if part.startswith("padding ")]
    rows = [
        [found["data"], f"{found['rows']:,}", *(f"{p:.1f} %" for p in found["percent"].values())]
        for found in sets
    ]
    return table(["padding in a batch", "rows", *sets[0]["percent"]], rows)


def _relative_to_floor(contenders: dict[str, Any], name: str) -> float:
    floor = _median(contenders["loop-floor"], "tokens_per_second")
    return floor / _median(contenders[name], "tokens_per_second")


def evaluation_table() -> str:
    """Questions per second of the three ways of scoring."""
    titles = {
        "rosa-evaluate": "`rosa evaluate`",
        "generate-loop": "plain `generate` loop",
        "lm-eval": "lm-evaluation-harness",
    }
    blocks = []
    for model, parts in read_json("real_cpu.json").items():
        if found := parts.get("evaluation"):
            rows = [
                [title, f"{_median(found[name], 'questions_per_second'):.2f}"]
                for name, title in titles.items()
            ]
            rounds = _of_rounds(len(found["rosa-evaluate"]["questions_per_second"]["all"]))
            note = f"{rounds}; {measured_on(found['environment'])}."
            blocks.append(f"{table([model, 'questions/s'], rows)}\n\n{note}")
    return "\n\n".join(blocks)


def startup_table() -> str:
    """Seconds of commands that compute nothing."""
    found = dict(read_json("real_cpu.json")["SmolLM2-135M-Instruct"]["startup"])
    where = measured_on(found.pop("environment"))
    rows = [[STARTUP.get(name, name), f"{seconds:.2f} s"] for name, seconds in found.items()]
    return f"{table(['command', 'wall time'], rows)}\n\n{where[0].upper()}{where[1:]}."


def norms_table() -> str:
    """Gemma-3-270M, of each arm and rate: held-out loss, exact answers, and what moved."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    results = read_json("real_norms.json")["gemma-3-270m"]
    for key, run in results.items():
        if key != "base":
            runs[key.rsplit(" seed=", 1)[0]].append(run)
    rows = [["the model as it is", "", "", *_held_out([results["base"]]), "", ""]]
    for key, of in sorted(runs.items(), key=lambda item: _loss(item[1])):
        arm, rate, norm_rate, _ = key.split()
        rates = f"{rate}, {norm_rate}" if of[0]["norm_change"] else rate
        rows.append(
            [
                f"{arm}, {rates}",
                str(len(of)),
                f"{of[0]['trainable']:,}",
                *_held_out(of),
                _change(of),
                _share_of_norms(of),
            ]
        )
    head = ["trained", "seeds", "parameters", "held-out loss", "exact answers",
            "norms changed by", "logits changed by norms alone : the rest alone"]  # fmt: skip
    return table(head, rows)


def _loss(of: list[dict[str, Any]]) -> float:
    return statistics.mean(run["test"]["loss"] for run in of)


def _held_out(of: list[dict[str, Any]]) -> list[str]:
    cells = []
    for key, digits, unit in (("loss", 3, ""), ("exact", 1, " %")):
        values = [run["test"][key] for run in of]
        spread = f" ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(of) > 1 else ""
        cells.append(f"{statistics.mean(values):.{digits}f}{unit}{spread}")
    return cells


def _change(of: list[dict[str, Any]]) -> str:
    """Median over norms, layers and seeds of the share by which scales have moved."""
    shares = [
        share
        for run in of
        for layers in (run["norm_change"] or {}).values()
        for share in layers
        if share is not None  # of a layer with scales of 0
    ]
    return f"{100 * statistics.median(shares):.2g} %" if shares else "–"


def _share_of_norms(of: list[dict[str, Any]]) -> str:
    norms, rest = (statistics.mean(run["logit_change"][key] for run in of)
                   for key in ("norms", "rest"))  # fmt: skip
    return f"{norms:.2f} : {rest:.2f}"


def scales_table() -> str:
    """Median size of the norms' scales, first to last layer, and what the scores follow."""
    rows = []
    for model, found in read_json("real_norms.json").items():
        base = found["base"]
        for name, sizes in base["scales"].items():
            ends = (sizes[0], sizes[-1], min(sizes), max(sizes))
            rows.append([f"{model}, `{name}`", *map(_two_digits, ends)])
    return table(["median size of the scales", "first layer", "last", "smallest", "largest"], rows)


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def correlation_table() -> str:
    """Spearman's rank correlation of layers' scores with the sizes of their scales."""
    rows = []
    for model, found in read_json("real_norms.json").items():
        base = found["base"]
        for kind, (rho, p) in base["rank_correlation_with_scale"].items():
            rows.append(
                [f"{model}, `{kind}`", f"{rho:+.2f} (p {p:.1g})", _numbers(base["selected"][kind])]
            )
    return table(
        ["score", "rank correlation with the size of the scales", "the half with the highest"], rows
    )


def _numbers(layers: list[int]) -> str:
    """`0-3, 7` for [0, 1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
