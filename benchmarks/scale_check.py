"""Checks the memory formulas against what PyTorch keeps; docs/notes/performance.md shows it.

python -m benchmarks.scale_check     # writes docs/results/scale.json, about two minutes

Bytes saved for backward are counted storage by storage, those of weights parameter by parameter:
neither depends on the machine. Weights are random; shapes, as they are in real models.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from benchmarks.contenders import llama
from benchmarks.measure import saved_bytes
from rosa.budget.activation_memory import AdapterSpec, DecoderShape, MicroBatch, loss_bytes
from rosa.budget.activation_memory import saved_bytes as formula_bytes
from rosa.budget.memory import AdaptedModel
from rosa.budget.parameters import load_model_config
from rosa.common.environment import describe_environment
from rosa.methods.registry import method_config
from rosa.models.quantization import loading_options

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "scale.json"
DTYPES = {2: torch.bfloat16, 4: torch.float32}
METHODS = {
    "frozen model": AdapterSpec(),
    "RoSA": AdapterSpec("rosa"),
    "RoAE without norms": AdapterSpec("rosa", {"train_norms": False}),
    "LoRA, all linears, r=16": AdapterSpec("lora", {"r": 16, "target_modules": "all-linear"}),
}


CONFIGS = {
    "512 wide, 8 layers": lambda: llama(512, 8),
    "1024 wide, 6 layers": lambda: llama(1024, 6),
    "Qwen2.5-0.5B": lambda: load_model_config("Qwen2.5-0.5B"),
}
BATCHES = {
    "512 wide, 8 layers": (
        MicroBatch(4, 256, 4, padded=False),
        MicroBatch(4, 256, 4),
        MicroBatch(1, 1024, 4, padded=False),
        MicroBatch(4, 256, 2),
        MicroBatch(4, 256, 4, eager=True),
    ),
    "1024 wide, 6 layers": (MicroBatch(4, 256, 4, padded=False),),
    "Qwen2.5-0.5B": (MicroBatch(1, 512, 2, padded=False),),
}


def measured(config: Any, adapter: AdapterSpec, batch: MicroBatch) -> int:
    """Bytes that a forward pass of this model keeps for the backward pass, weights left out."""
    torch.manual_seed(0)
    kernel = "eager" if batch.eager else None  # else as Transformers chooses
    plain = AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
    plain = plain.to(DTYPES[batch.dtype_bytes])
    ids = torch.randint(3, config.vocab_size, (batch.rows, batch.length))
    given: dict[str, Any] = {"input_ids": ids}
    model: Any = plain
    if adapter.method is None:  # the gradient is wanted at the embedding's output
        plain.requires_grad_(False)
        given = {"inputs_embeds": plain.get_input_embeddings()(ids).detach().requires_grad_()}
    else:
        model = get_peft_model(plain, method_config(adapter.method, adapter.given, total_steps=99))
    if batch.padded:
        mask = torch.ones_like(ids)
        mask[0, batch.length * 3 // 4 :] = 0
        given["attention_mask"] = mask
    resident = [ids, *model.parameters(), *model.buffers()]
    with torch.autocast("cpu", torch.bfloat16, enabled=batch.dtype_bytes == 2):
        return saved_bytes(
            lambda: model.train()(**given, labels=ids, use_cache=False).loss, resident=resident
        )


def estimated(config: Any, adapter: AdapterSpec, batch: MicroBatch) -> float:
    """The same by formula."""
    shape = DecoderShape.of(config)
    return formula_bytes(shape, adapter, batch) + loss_bytes(shape, batch)


def weights(config: Any, quantization: str | None) -> dict[str, float]:
    """Bytes of a model's parameters and of the scales of those in few bits."""
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    base = sum(p.numel() for p in model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        options = loading_options(quantization, torch.bfloat16, torch.device("cpu"))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)
        found = sum(p.nbytes + scales(p) for p in model.parameters())
        del model
    said = AdaptedModel(DecoderShape.of(config), base, 0, 2, quantization).weight_bytes
    return {"measured": found, "estimated": round(said)}


def scales(parameter: torch.nn.Parameter) -> int:
    """Bytes that go with a parameter in few bits: scales, and the scales of scales."""
    total = 0
    state = getattr(parameter, "quant_state", None)
    while state is not None:
        total += state.absmax.nbytes
        state = state.state2
    by_row = getattr(parameter, "SCB", None)
    return total + (0 if by_row is None else by_row.nbytes)


def main() -> None:
    saved = []
    for name, make in CONFIGS.items():
        for batch in BATCHES[name]:
            for title, adapter in METHODS.items():
                row = {
                    "model": name,
                    "method": title,
                    "rows": batch.rows,
                    "length": batch.length,
                    "dtype": "bfloat16" if batch.dtype_bytes == 2 else "float32",
                    "padded": batch.padded,
                    "attention": "eager" if batch.eager else "fused",
                    "measured": measured(make(), adapter, batch),
                    "estimated": round(estimated(make(), adapter, batch)),
                }
                saved.append(row)
                print(json.dumps(row), flush=True)
    held = [
        {"model": name, "weights": kind or "bfloat16", **weights(make(), kind)}
        for name, make in CONFIGS.items()
        for kind in (None, "nf4", "int8")
    ]
    record = {**describe_environment(), "saved": saved, "weights": held}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
