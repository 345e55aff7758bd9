"""Gemma3 and others of real weights: sizes of norms, layer scores and short training runs.

    make smollm2
    python -m benchmarks.real_norms --arms rosa rosa-relative lora --seeds 1 2 3
    python -m benchmarks.real_norms --model models/gemma-3-270m --arms rosa rosa-relative

Every arm and seed is a run of its own on the two toy tasks: AdamW, cosine schedule, no weight
decay, the loss of answers only. Held-out rows are never trained on; half of them (validation) are
for the choice of a learning rate, the other half for the figures. Results are added to
docs/results/real_norms.json after each run, and a run that is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

import rosa
from rosa.common.environment import describe_environment
from rosa.data.length_grouping import LengthGroupedSampler
from rosa.data.sources import load_training_rows
from rosa.data.splits import sample
from rosa.data.tokenization import tokenize_rows
from rosa.dls.choice import num_selected, top_k
from rosa.dls.layers import (
    active_copy,
    find_decoder_layers,
    score_factors,
    scored_norms,
    scored_parameters,
)
from rosa.dls.scores import layer_scores
from rosa.models.loading import load_base_model, load_tokenizer
from rosa.ops import RelativeNorm, scale_offset

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "real_norms.json"
TASKS, BATCH, WARMUP, HELD_OUT = ("tiny-sums", "tiny-choice"), 16, 0.05, 400
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
# What is trained; rates are those of `--lr` and `--norm_lr`.
ARMS: dict[str, Any] = {
    "rosa": lambda: rosa.RosaConfig(),
    "rosa-dls": lambda: rosa.RosaConfig(dls=rosa.DlsConfig(interval=10)),
    "rosa-relative": lambda: rosa.RosaConfig(norm_parametrization="relative"),
    "rosa-bound": lambda: rosa.RosaConfig(bound=1.0),
    "rosa-pre": lambda: rosa.RosaConfig(rope_stage="pre"),
    "roae": lambda: rosa.RosaConfig(train_norms=False),
    "norms": lambda: rosa.RosaConfig(),
    "norms-relative": lambda: rosa.RosaConfig(norm_parametrization="relative"),
    "dypam": lambda: rosa.DypamConfig(),
    "lora": lambda: LoraConfig(**LORA, task_type="CAUSAL_LM"),
}
RELATIVE_RATE = 5e-3  # of relative norms, unless --norm_lr says otherwise


class Rows:
    """Tokenized rows of the toy tasks: for training, for validation and for the figures."""

    def __init__(self, model: str) -> None:
        tokenizer = load_tokenizer(model)
        parts: list[list[dict[str, Any]]] = [[], [], []]
        for task in TASKS:
            rows = sample(load_training_rows(task), 3000, seed=1)
            records = [(task, n, row) for n, row in enumerate(rows, 1)]
            tokenized = tokenize_rows(records, tokenizer, max_length=512).rows
            cut = HELD_OUT // (2 * len(TASKS))
            bounds = (2 * cut, None), (0, cut), (cut, 2 * cut)
            for part, (first, last) in zip(parts, bounds, strict=True):
                part += tokenized[first:last]
        self.training, self.validation, self.test = parts

    def batches(self, seed: int) -> Iterator[list[dict[str, Any]]]:
        """Endless batches of rows of like length, shuffled by the seed."""
        sampler = LengthGroupedSampler([len(r["input_ids"]) for r in self.training], BATCH, seed)
        while True:
            order = list(sampler)
            for at in range(0, len(order) - BATCH + 1, BATCH):
                yield [self.training[i] for i in order[at : at + BATCH]]


def answer_logits(model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, vocabulary) and labels (n,) of the answers' tokens, and each one's row (n,)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids, labels = (
        pad_sequence([torch.tensor(r[key]) for r in rows], batch_first=True, padding_value=value)
        for key, value in (("input_ids", 0), ("labels", -100))
    )
    mask = pad_sequence([torch.ones(len(r["input_ids"])) for r in rows], batch_first=True).long()
    hidden = base.model(input_ids=ids, attention_mask=mask, use_cache=False)[0][:, :-1]
    wanted = labels[:, 1:] != -100
    row = torch.arange(len(rows))[:, None].expand_as(wanted)[wanted]
    return base.lm_head(hidden[wanted]).float(), labels[:, 1:][wanted], row


@torch.no_grad()
def held_out(model: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean loss of the answers' tokens, and the share of answers with every token right."""
    model.eval()
    loss, tokens, exact = 0.0, 0, 0
    rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    for at in range(0, len(rows), 2 * BATCH):
        chosen = rows[at : at + 2 * BATCH]
        logits, labels, row = answer_logits(model, chosen)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        tokens += len(labels)
        wrong = row[logits.argmax(-1) != labels].unique()
        exact += len(chosen) - len(wrong)
    model.train()
    return {"loss": loss / tokens, "exact": 100 * exact / len(rows)}


def norms_by_layer(model: nn.Module) -> list[dict[str, nn.Module]]:
    """Of each decoder layer its norms, as they compute now."""
    return [
        {name: active_copy(child) for name, child in layer.named_children() if "norm" in name}
        for layer in find_decoder_layers(model).layers
    ]


def scale_of(norm: nn.Module) -> Tensor:
    """What the norm multiplies by: its weight, or 1 + weight, in float32."""
    if isinstance(norm, RelativeNorm):
        return (norm.parameters_of_norm()["weight"] + norm.offset).detach().clone()
    return (norm.weight.detach().float() + (scale_offset(norm) or 0.0)).clone()


def scales(model: nn.Module) -> dict[str, list[Tensor]]:
    by_name: dict[str, list[Tensor]] = defaultdict(list)
    for layer in norms_by_layer(model):
        for name, norm in layer.items():
            by_name[name].append(scale_of(norm))
    return by_name


def relative_change(before: dict[str, list[Tensor]], model: nn.Module) -> dict[str, list[float]]:
    """By norm and layer, the median of |change| / |scale|, of scales that are not 0."""
    return {
        name: [((now - was).abs() / was.abs()).nanmedian().item()
               for now, was in zip(now_of, before[name], strict=True)]
        for name, now_of in scales(model).items()
    }  # fmt: skip


def scores_of_base(options: argparse.Namespace) -> dict[str, Any]:
    """Sizes of the scales, Eq. 5's scores and the relative ones, and what they go along with."""
    rows = Rows(options.model)
    model = adapted(options.model, "rosa")
    batches = rows.batches(seed=1)
    for _ in range(8):
        logits, labels, _ = answer_logits(model, next(batches))
        cross_entropy(logits, labels).backward()
    layers = find_decoder_layers(model).layers
    weights = [scored_parameters(layer, "") for layer in layers]
    factors = {p: by for layer in layers for p, by in score_factors(layer, "relative").items()}
    found = {"gradient": layer_scores(weights), "relative": layer_scores(weights, factors=factors)}
    norms = [map(active_copy, scored_norms(layer).values()) for layer in layers]
    size = [torch.cat([scale_of(n).abs() for n in layer]).median().item() for layer in norms]
    k = num_selected(0.5, len(layers))
    chosen = {name: top_k(values, range(len(layers)), k) for name, values in found.items()}
    return {
        "test": held_out(model, rows.test),
        "scales": {n: [s.abs().median().item() for s in v] for n, v in scales(model).items()},
        "scored_scale": size,
        "scores": found,
        "selected": chosen,
        "rank_correlation_with_scale": {
            name: list(spearmanr(values, size)) for name, values in found.items()
        },
        "rank_correlation_of_scores": list(spearmanr(found["gradient"], found["relative"])),
    }


def adapted(folder: str, arm: str) -> Any:
    base: Any = load_base_model(folder, dtype="bf16", device="cpu")
    model = get_peft_model(base, ARMS[arm]())
    if arm.startswith("norms"):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "norm" in name)
    return model.train()


def parts_of_change(model: Any, start: dict[str, Tensor], rows: list[Any]) -> dict[str, float]:
    """RMS change of the answers' centered logits: of the adapter, of its RoAE and norms alone."""
    named = {name: p for name, p in model.named_parameters() if name in start}
    end = {name: p.detach().clone() for name, p in named.items()}

    @torch.no_grad()
    def logits(of_norms: bool, of_rest: bool) -> Tensor:
        for name, parameter in named.items():
            trained = of_norms if "norm" in name else of_rest
            parameter.copy_((end if trained else start)[name])
        values = answer_logits(model.eval(), rows)[0]
        return values - values.mean(-1, keepdim=True)

    base = logits(False, False)
    change = {
        "both": logits(True, True) - base,
        "norms": logits(True, False) - base,
        "rest": logits(False, True) - base,
    }
    logits(True, True)
    return {name: value.square().mean().sqrt().item() for name, value in change.items()}


def run(options: argparse.Namespace, arm: str, seed: int, lr: float, norm_lr: float) -> dict:
    """Train one arm; what it learned and what moved."""
    rows = Rows(options.model)
    torch.manual_seed(seed)
    model = adapted(options.model, arm)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    has_norms = any("norm" in name for name in trained)
    groups = rosa.parameter_groups(model, lr, norm_lr) if has_norms else list(trained.values())
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=0.0, fused=True)
    steps, warmup = options.steps, max(1, round(WARMUP * options.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min((t + 1) / warmup, 0.5 * (1 + math.cos(math.pi * t / steps))),
    )
    dls = getattr(model.peft_config["default"], "dls", None)
    selection = dls and rosa.DynamicLayerSelection(model, optimizer, dls, total_steps=steps)
    start, before = {n: p.detach().clone() for n, p in trained.items()}, scales(model)
    losses, first, began = [], None, time.perf_counter()
    for _, chosen in zip(range(steps), rows.batches(seed), strict=False):
        logits, labels, _ = answer_logits(model, chosen)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        first = first or relative_change(before, model)
    return {
        "trainable": sum(p.numel() for p in trained.values()),
        "seconds": time.perf_counter() - began,
        "first_loss": statistics.mean(losses[:5]),
        "last_loss": statistics.mean(losses[-5:]),
        "validation": held_out(model, rows.validation),
        "test": held_out(model, rows.test),
        "norm_change_first_step": first if has_norms else None,
        "norm_change": relative_change(before, model) if has_norms else None,
        "logit_change": parts_of_change(model, start, rows.test[:48]),
        "selected": [record["selected"] for record in selection.history] if selection else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--norm_lr", type=float, help="default: --lr, or 5e-3 if relative")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = Path(options.model).name
    if "base" not in _read().get(name, {}):
        _add(name, "base", scores_of_base(options))
    for seed in options.seeds:
        for arm in options.arms:
            norm_lr = options.norm_lr or (RELATIVE_RATE if "relative" in arm else options.lr)
            key = f"{arm} lr={options.lr:g} norm_lr={norm_lr:g} steps={options.steps} seed={seed}"
            if key not in _read().get(name, {}):
                found = run(options, arm, seed, options.lr, norm_lr)
                _add(name, key, found)
                print(name, key, found["test"], f"{found['seconds']:.0f} s", flush=True)


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def _add(model: str, key: str, found: dict[str, Any]) -> None:
    results = _read()
    results.setdefault(model, {})[key] = {"environment": describe_environment(), **found}
    RESULTS.write_text(json.dumps(_rounded(results), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    """Floats in five digits: the file is read by people."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
