"""The README's figures: parameters counted, costs measured, where RoSA wins and where not."""

from __future__ import annotations

from statistics import mean
from textwrap import fill, indent
from typing import Any

from transformers import LlamaConfig

from docs.generators.blocks import RESULTS, measured_on, read_json
from rosa.budget.parameters import count_parameters, load_model_config

SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "tie_word_embeddings": True,
}  # fmt: skip
COSTS = {  # by its name in the benchmark: title, method of `rosa params`, name while decoding
    "rosa": ("RoSA", "rosa", "rosa"),
    "rosa_dls_drawn": ("RoSA + DLS, half of the layers", "rosa", "rosa"),
    "lora": ("LoRA, all linears, r = 16", "lora", "lora"),
    "ln_tuning": ("LN Tuning", "ln_tuning", ""),
}
MODEL = "Qwen2.5-7B"


def parameters_line() -> str:
    """What `print_trainable_parameters()` says of SmolLM2-135M."""
    found = count_parameters(LlamaConfig(**SMOLLM2_135M), "rosa")
    return f"Trains {found.trainable:,} of {found.total:,} parameters ({found.percent:.2f} %)."


def costs_table() -> str:
    """Parameters, time and memory of a training step, and decoding, beside LoRA."""
    found = read_json("performance_cpu.json")
    steps = {row["contender"]: row for row in _first_place(found["methods"]["rows"])}
    decoding = {
        (row["contender"], row["batch"]): row["decode"]["ratio"]
        for row in found["decode"]["rows"]
        if row["size"] == steps["floor"]["size"]
    }
    lines = [
        f"| | parameters in {MODEL} | training step | saved for backward | decoding, batch 1 / 32"
        " |",
        "|---|---:|---:|---:|---:|",
    ]
    for contender, (title, method, decoder) in COSTS.items():
        budget, row = count_parameters(load_model_config(MODEL), method), steps[contender]
        saved = row["saved_bytes"] / steps["floor"]["saved_bytes"]
        batches = " / ".join(f"{decoding[decoder, b]:.2f}" for b in (1, 32)) if decoder else "–"
        lines.append(
            f"| {title} | {budget.trainable:,} ({budget.percent:.3f} %) | {row['ratio']:.2f} | "
            f"{saved:.2f} | {batches} |"
        )
    place = measured_on({"cores": 2, **found["methods"]["environment"]})
    said = (
        "Merged, LoRA decodes at 1.00; RoSA depends on its input and cannot be merged. A Llama of "
        f"random weights, 512 wide with 8 layers, 4 × 256 tokens, float32; {place}."
    )
    return "\n".join([*lines, "", said])


def status() -> str:
    """Where it has been run, where it wins and where it does not."""
    found = read_json("performance_cpu.json")
    rows = {row["contender"]: row for row in _first_place(found["methods"]["rows"])}
    step = rows["rosa"]["seconds"] / rows["lora"]["seconds"]
    saved = rows["rosa"]["saved_bytes"] / rows["lora"]["saved_bytes"]
    points = [
        "**Hardware:** everything was run and measured on CPUs. GPU kernels are compiled by the "
        "tests and have not been run. The paper's tables have not been reproduced.",
        f"**Where RoSA wins:** a training step takes {step:.2f} × the time and keeps {saved:.2f} × "
        "the memory of LoRA on all linears (r = 16), measured on two cores.",
        "**Where it does not:** in [the tiny study](docs/notes/tiny_study.md) RoSA scores "
        f"{_accuracy('rosa')}, LoRA {_accuracy('lora')}, and training the norms alone "
        f"{_accuracy('norms-alone')}. RoSA cannot be merged, so it decodes more slowly than "
        "merged LoRA.",
        "**Real models:** [first looks](docs/guides/real_models.md) only, of one seed. On "
        f"SmolLM2-135M `rosa train` does {_times_plain_trl():.1f} × the tokens per second of plain "
        "TRL with LoRA ([measured](docs/notes/performance.md#real-models) once, on two cores).",
    ]
    bullets = "\n".join(
        fill(point, 96, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        for point in points
    )
    return indent(f"[!IMPORTANT]\n**Status**\n\n{bullets}", "> ", lambda line: True).replace(
        "> \n", ">\n"
    )


def _times_plain_trl() -> float:
    found = read_json("real_cpu.json")["SmolLM2-135M-Instruct"]["training bf16"]["contenders"]
    rates = [found[name]["tokens_per_second"]["median"] for name in ("rosa", "trl-lora")]
    return rates[0] / rates[1]


def _accuracy(method: str) -> str:
    """Mean micro average in the tiny study, as 56 % (which does not wrap)."""
    runs = [r for r in read_json("tiny/results.json")["runs"] if r["method"] == method]
    each = [
        sum(s["correct"] for s in run["scores"]) / sum(s["scored"] for s in run["scores"])
        for run in runs
    ]
    return f"{mean(each):.0%}".replace("%", "\u00a0%")


def _first_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows measured at the first size, shape and precision."""
    place = [rows[0][key] for key in ("size", "batch", "length", "dtype")]
    return [r for r in rows if [r[key] for key in ("size", "batch", "length", "dtype")] == place]


def demo_table(name: str = "demo.json", command: str = "make demo-record") -> str:
    """What a demo found: accuracy per toy task before and after, time and machine."""
    if not (RESULTS / name).exists():
        return f"Not recorded yet: `{command}`."
    record = read_json(name)
    lines = ["| held-out questions | base model | after RoSA |", "|---|---:|---:|"]
    for old, new in zip(record["before"]["tasks"], record["after"]["tasks"], strict=True):
        title = f"{old['title']} ({old['scored']})"
        lines.append(f"| {title} | {old['accuracy']:.1f} % | {new['accuracy']:.1f} % |")
    cost = f"{record['trainable']:,} trainable parameters, {record['seconds']} seconds in all"
    if speed := record.get("tokens_per_second"):
        cost += f", {speed:,.0f} tokens per second of training"
    return "\n".join([*lines, "", f"{cost}; {measured_on(record)}."])
