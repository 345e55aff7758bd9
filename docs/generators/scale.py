"""Tables of docs/notes/performance.md: by formula, and from docs/results/scale.json."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from benchmarks.roae_costs import roae_cost
from docs.generators.blocks import read_json
from rosa.budget.activation_memory import AdapterSpec, DecoderShape, MicroBatch
from rosa.budget.memory import AdaptedModel, training_memory
from rosa.budget.parameters import base_parameters, count_parameters, load_model_config
from rosa.budget.time import CPU_CORE, H100, forward_flops

MODELS = ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Llama-3.2-3B", "Qwen2.5-7B", "Qwen2.5-14B",
          "Qwen2.5-32B", "Llama-3.1-70B")  # fmt: skip
ROWS, LENGTH = 4, 1024
GIB = 2**30


@cache
def adapted(model: str) -> AdaptedModel:
    config = load_model_config(model)
    trainable = count_parameters(config, "rosa").trainable
    assert trainable is not None
    return AdaptedModel(DecoderShape.of(config), base_parameters(config), trainable, 2, None)


def cost_table() -> str:
    """RoAE's operations, bytes and floors per token, beside the model's."""
    lines = [
        "| model | forward, MFLOP | backward, MFLOP | of the model's | bytes, KiB | floor on an "
        "H100, ns | of the model's | floor on a CPU core, µs |",
        "|---|" + "---:|" * 7,
    ]
    for name in MODELS:
        model = adapted(name)
        cost = roae_cost(model.shape, AdapterSpec("rosa"))
        whole = 2 * forward_flops(model, LENGTH)
        share = 100 * (cost.forward_flops + cost.backward_flops) / whole
        floor = cost.seconds(H100)
        in_float32 = roae_cost(model.shape, AdapterSpec("rosa"), 4).seconds(CPU_CORE)
        moved = (cost.forward_bytes + cost.backward_bytes) / 1024
        lines.append(
            f"| {name} | {cost.forward_flops / 1e6:.1f} | {cost.backward_flops / 1e6:.1f} | "
            f"{share:.2f} % | {moved:,.0f} | {1e9 * floor:.0f} | "
            f"{100 * floor / (whole / H100.flops):.1f} % | {1e6 * in_float32:,.0f} |"
        )
    return "\n".join(lines)


def memory_table() -> str:
    """GiB of a training step in bf16 and NF4, with checkpointing and without."""
    lines = [
        "| model | bf16: weights | total | checkpointing | NF4: weights | total | checkpointing |",
        "|---|" + "---:|" * 6,
    ]
    for name in MODELS:
        cells = []
        for kind in (None, "nf4"):
            model = replace(adapted(name), quantization=kind)
            batches = [
                MicroBatch(ROWS, LENGTH, gradient_checkpointing=less) for less in (False, True)
            ]
            needs = [training_memory(model, AdapterSpec("rosa"), batch) for batch in batches]
            cells += [needs[0].weights, *(need.total for need in needs)]
        lines.append(f"| {name} | {' | '.join(f'{cell / GIB:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def check_table() -> str:
    """Measured bytes by estimated ones."""
    record = read_json("scale.json")
    lines = [
        "| model | rows x length | | saved by | measured, MiB | by formula | off by |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in record["saved"]:
        how = f"{row['dtype']}, {row['attention']}{', padded' if row['padded'] else ''}"
        lines.append(
            f"| {row['model']} | {row['rows']} x {row['length']} | {how} | {row['method']} | "
            f"{_compared(row)}"
        )
    for row in record["weights"]:
        lines.append(f"| {row['model']} | | {row['weights']} | weights | {_compared(row)}")
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "transformers"))
    by = f"By `python -m benchmarks.scale_check` with {versions} (commit {record['commit']})."
    return "\n".join([*lines, "", by])


def _compared(row: dict[str, float]) -> str:
    measured, said = row["measured"], row["estimated"]
    return f"{measured / 2**20:.1f} | {said / 2**20:.1f} | {100 * (said / measured - 1):+.1f} % |"
